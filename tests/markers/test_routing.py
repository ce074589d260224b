"""Markers of routing: known values, expectations at random, biases, invariances, and an independent reference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import geomonitor as gm
from geomonitor.features.routing import LayerRouting
from geomonitor.markers.pathways import pathway_consistency, pathway_distance
from geomonitor.markers.routing import dead_experts, router_entropy, router_load_entropy, token_entropies
from geomonitor.markers.routing_layers import MEAN, routing_markers

ITEMS, TOKENS, EXPERTS, K, WIDTH = 9, 14, 6, 2, 5


def routed(seed: int = 0, *, items: int = ITEMS, tokens: int = TOKENS, experts: int = EXPERTS, k: int = K):
    """Logits ``(Q, l, E)`` of a router, and the layer that they make."""
    logits = torch.randn(items, tokens, experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits = logits + torch.randn(items, 1, experts, generator=torch.Generator().manual_seed(seed + 1))
    p = logits.softmax(dim=-1)
    top, indices = p.topk(k, dim=-1)
    wide = torch.zeros_like(p)
    weights = wide.scatter(-1, indices, top / top.sum(dim=-1, keepdim=True))
    entropies = torch.special.entr(p).sum(dim=-1) / math.log(experts)
    counts = wide.scatter(-1, indices, 1.0)
    number = torch.full((items,), float(tokens), dtype=torch.float64)
    return logits, LayerRouting(counts.sum(dim=1), weights.mean(dim=1), entropies.sum(dim=1), number)


def rows(seed: int, width: int = WIDTH) -> Tensor:
    return torch.randn(EXPERTS, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(logits: list[Tensor], router_rows: list[Tensor]) -> dict[str, float]:
    """All markers over the layers in NumPy, from the definitions, with loops."""
    load, dead, entropy, distance, vectors = [], [], [], [], []
    for layer, r in zip(logits, router_rows, strict=True):
        z = layer.numpy()
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        counts = np.zeros(EXPERTS)
        mean_weights = np.zeros((len(z), EXPERTS))
        for item in range(len(z)):
            for token in p[item]:
                best = np.argsort(-token)[:K]
                counts[best] += 1
                mean_weights[item, best] += token[best] / token[best].sum() / len(p[item])
        shares = counts[counts > 0] / counts.sum()
        load.append(-(shares * np.log(shares)).sum() / np.log(EXPERTS))
        dead.append((counts == 0).mean())
        entropy.append((-(p * np.log(p)).sum(-1)).mean() / np.log(EXPERTS))
        sets = [set(np.argsort(-w)[:K].tolist()) for w in mean_weights]
        distance.append(np.mean([1 - len(a & b) / K for a, b in itertools.combinations(sets, 2)]))
        vectors.append(mean_weights @ r.numpy())
    cosines = [
        np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(one, other, strict=True)])
        for one, other in itertools.pairwise(vectors)
    ]
    return {
        "router_load_entropy": np.mean(load), "dead_experts": np.mean(dead), "router_entropy": np.mean(entropy),
        "pathway_distance": np.mean(distance), "pathway_consistency": np.mean(cosines),
    }  # fmt: skip


def test_an_independent_reference():
    made, router_rows = [routed(seed) for seed in (0, 7, 20)], [rows(seed) for seed in (1, 2, 3)]
    layers = {str(n): layer for n, (_, layer) in enumerate(made)}
    found = routing_markers(layers, dict(zip(layers, router_rows, strict=True)))
    expected = reference([logits for logits, _ in made], router_rows)
    assert set(found[MEAN]) == set(expected) == set(gm.MARKER_GROUPS["moe"])
    for name, value in expected.items():
        assert float(found[MEAN][name].value) == pytest.approx(value, rel=1e-12), name
    for number, (logits, _) in enumerate(made):
        alone = reference([logits, logits], [router_rows[number]] * 2)
        for name in ("router_load_entropy", "router_entropy", "pathway_distance"):
            assert float(found[str(number)][name].value) == pytest.approx(alone[name], rel=1e-12)


def test_even_use_is_1_and_one_expert_is_0():
    even, one = torch.full((3, 4), 25.0), torch.tensor([[90.0, 0, 0, 0]] * 3)
    assert float(router_load_entropy(even).value) == pytest.approx(1, abs=1e-15)
    assert float(router_load_entropy(one).value) == 0
    assert float(dead_experts(even)) == 0
    assert float(dead_experts(one)) == 0.75
    assert token_entropies(torch.full((2, 5), 0.2)).tolist() == pytest.approx([1, 1])


def test_dead_experts_needs_20_assignments_an_expert():
    assert math.isnan(dead_experts(torch.tensor([[40.0, 39.0, 0.0, 0.0]])))  # 79 of 80
    assert float(dead_experts(torch.tensor([[40.0, 40.0, 0.0, 0.0]]))) == 0.5


def test_a_living_expert_is_missed_as_rarely_as_stated():
    assert (1 - 1 / 8) ** (20 * 8) == pytest.approx(math.exp(-20), rel=0.8)  # 5e-10: top 1 of 8, 160 tokens


def test_the_bias_of_the_load_entropy_is_the_one_of_the_formula():
    generator, experts, k, tokens = torch.Generator().manual_seed(0), 8, 1, 60
    draws = torch.randint(0, experts, (4000, tokens), generator=generator)
    counts = torch.zeros(4000, experts).scatter_add(1, draws, torch.ones(4000, tokens))
    values = torch.stack([router_load_entropy(row[None]).value for row in counts])
    bias, error = float(values.mean()) - 1, float(values.std()) / 4000**0.5
    expected = -(experts - 1) / (2 * tokens * k * math.log(experts))
    assert bias == pytest.approx(expected, abs=4 * error + 0.1 * abs(expected))  # the next term is of order 1 / T^2
    assert error < 0.02 * abs(expected)


@pytest.mark.parametrize(("experts", "k"), [(4, 2), (5, 1), (5, 3), (3, 3)])
def test_sets_at_random_are_1_minus_k_by_e_apart_in_expectation(experts, k):
    sets = [
        torch.zeros(experts).index_fill(0, torch.tensor(s), 1 / k) for s in itertools.combinations(range(experts), k)
    ]
    values = [float(pathway_distance(torch.stack([a, b]), k).value) for a in sets for b in sets]
    assert np.mean(values) == pytest.approx(1 - k / experts, abs=1e-12)


def test_the_error_of_a_distance_covers_its_spread():
    """Over 300 draws of 25 items each: the jackknife is of the size of the standard deviation of the values."""
    generator = torch.Generator().manual_seed(3)
    found = [pathway_distance(torch.rand(25, 8, generator=generator), 2) for _ in range(300)]
    spread = float(torch.stack([each.value for each in found]).std())
    errors = torch.stack([each.standard_error for each in found])
    assert 0.8 < float(errors.square().mean().sqrt()) / spread < 1.6


def test_equal_items_are_0_apart_and_one_item_is_undefined():
    _, layer = routed()
    equal = layer.weights[:1].expand(5, -1)
    assert tuple(map(float, pathway_distance(equal, K))) == (0, 0)
    assert all(map(math.isnan, pathway_distance(equal[:1], K)))
    two = pathway_distance(equal[:2], K)
    assert float(two.value) == 0
    assert math.isnan(two.standard_error)


def test_errors_are_jackknives_over_items():
    _, layer = routed()
    without = list(range(ITEMS))
    for function in (
        lambda kept: router_load_entropy(layer.assignments[kept]),
        lambda kept: router_entropy(layer.entropies[kept], layer.tokens[kept]),
        lambda kept: pathway_distance(layer.weights[kept], K),
        lambda kept: pathway_consistency((layer.weights[kept], layer.weights[kept].flip(1)), (rows(1), rows(2))),
    ):
        values = torch.stack([function([i for i in without if i != left]).value for left in without])
        by_hand = ((ITEMS - 1) / ITEMS * (values - values.mean()).square().sum()).sqrt()
        assert float(function(without).standard_error) == pytest.approx(float(by_hand), rel=1e-9)


def test_permuting_the_experts_of_a_layer_changes_nothing():
    layers = {name: routed(seed)[1] for name, seed in (("a", 0), ("b", 9))}
    weights = {"a": rows(1), "b": rows(2)}
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    a = layers["a"]
    moved = {**layers, "a": a._replace(assignments=a.assignments[:, order], weights=a.weights[:, order])}
    one, other = routing_markers(layers, weights), routing_markers(moved, {**weights, "a": weights["a"][order]})
    for path, of_layer in one.items():
        for name, estimate in of_layer.items():
            torch.testing.assert_close(torch.stack(other[path][name]), torch.stack(estimate), equal_nan=True)


def test_consistency_depends_on_the_scale_of_no_router():
    layers = {name: routed(seed)[1] for name, seed in (("a", 0), ("b", 9))}
    value = routing_markers(layers, {"a": rows(1), "b": rows(2)})[MEAN]["pathway_consistency"].value
    scaled = routing_markers(layers, {"a": 1e-6 * rows(1), "b": 1e160 * rows(2)})[MEAN]["pathway_consistency"].value
    assert float(scaled) == pytest.approx(float(value), rel=1e-9)
    same = pathway_consistency((layers["a"].weights,) * 2, (rows(1), 3 * rows(1)))
    assert float(same.value) == pytest.approx(1)


def test_the_mean_is_over_layers_and_the_last_layer_has_no_next_one():
    layers = {name: routed(seed)[1] for name, seed in (("a", 0), ("b", 9), ("c", 4))}
    found = routing_markers(layers, {"a": rows(1), "b": rows(2), "c": rows(3)})
    assert math.isnan(found["c"]["pathway_consistency"].value)
    for name in gm.MARKER_GROUPS["moe"]:
        counted = "ab" if name == "pathway_consistency" else "abc"
        mean = np.mean([float(found[path][name].value) for path in counted])
        assert float(found[MEAN][name].value) == pytest.approx(mean, nan_ok=True)


@pytest.mark.parametrize("weights", [
    {"a": rows(1), "b": None}, {"a": rows(1), "b": rows(2, WIDTH + 1)}, {"a": rows(1), "b": 0 * rows(2)},
])  # fmt: skip
def test_consistency_is_undefined_without_comparable_routers(weights):
    layers = {name: routed(seed)[1] for name, seed in (("a", 0), ("b", 9))}
    found = routing_markers(layers, weights)[MEAN]
    assert math.isnan(found["pathway_consistency"].value)
    assert math.isfinite(found["pathway_distance"].value)


def test_one_expert_has_no_entropy():
    assert math.isnan(router_load_entropy(torch.full((3, 1), 30.0)).value)
    assert token_entropies(torch.ones(2, 1)).isnan().all()


def test_half_precision_is_read_exactly():
    counts = torch.tensor([[3.0, 5.0, 0.0], [1.0, 7.0, 2.0]])
    assert router_load_entropy(counts.bfloat16()).value == router_load_entropy(counts).value


@pytest.mark.parametrize(("call", "message"), [
    (lambda: router_load_entropy(torch.tensor([[1.0, -1.0]])), "assignments must not be negative"),
    (lambda: router_load_entropy(torch.ones(3)), "shape"),
    (lambda: dead_experts(torch.tensor([[torch.nan, 1.0]])), "finite"),
    (lambda: pathway_distance(torch.ones(2, 3), 4), "per_token is at most the number of experts, 3; got 4"),
    (lambda: pathway_distance(torch.ones(2, 3), 0), "per_token is a whole number"),
    (lambda: router_entropy(torch.ones(2), torch.ones(3)), "entropies and tokens"),
    (lambda: pathway_consistency((torch.ones(2, 3), torch.ones(2, 3)), (torch.ones(3, 4), torch.ones(3, 5))), "fit"),
])  # fmt: skip
def test_wrong_input_is_refused(call, message):
    with pytest.raises(gm.InputError, match=message):
        call()
