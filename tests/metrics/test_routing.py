"""RoutingStatistics: the functions are the reference; any split, order and number of processes gives the same."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

import geomonitor as gm
from geomonitor.features.routing import LayerRouting
from geomonitor.markers.routing_layers import MEAN, ROUTING_MARKERS, routing_markers
from tests.processes import in_processes

LAYERS, EXPERTS, K, ITEMS, LENGTH, WIDTH = 3, 4, 2, 30, 9, 6


def layer(seed: int) -> LayerRouting:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(ITEMS, LENGTH, EXPERTS, generator=generator, dtype=torch.float64).softmax(dim=-1)
    top, indices = p.topk(K, dim=-1)
    counts = torch.zeros_like(p).scatter(-1, indices, 1.0)
    weights = torch.zeros_like(p).scatter(-1, indices, top / top.sum(dim=-1, keepdim=True))
    tokens = torch.full((ITEMS,), float(LENGTH), dtype=torch.float64)
    return LayerRouting(counts.sum(dim=1), weights.mean(dim=1), torch.special.entr(p).sum(dim=(1, 2)), tokens)


def routing(items: slice | Tensor = slice(None)) -> dict[str, LayerRouting]:
    return {f"layers.{n}.gate": LayerRouting(*(field[items] for field in layer(n))) for n in range(LAYERS)}


def router_weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(EXPERTS, WIDTH, generator=generator) for _ in range(LAYERS)]


def metric(**options) -> gm.RoutingStatistics:
    return gm.RoutingStatistics(LAYERS, EXPERTS, weights=router_weights(), **options)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys() == set(gm.RoutingStatistics.names)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-12, atol=1e-14, msg=name)


def whole() -> dict[str, Tensor]:
    one = metric()
    one.update(routing(), torch.arange(ITEMS))
    return one.compute()


def test_the_values_are_those_of_the_functions():
    paths = list(routing())
    expected = routing_markers(routing(), dict(zip(paths, router_weights(), strict=True)))
    one = metric()
    one.update(routing())
    for found, reference in (
        (one.compute(), expected[MEAN]),
        *zip(one.by_layer(), map(expected.get, paths), strict=True),
    ):
        for name in ROUTING_MARKERS:
            torch.testing.assert_close(found[name], reference[name].value, equal_nan=True, msg=name)
        for name in ("pathway_distance", "pathway_consistency"):
            error = found[f"{name}_standard_error"]
            torch.testing.assert_close(error, reference[name].standard_error, equal_nan=True, msg=name)
    assert all(math.isfinite(value) for value in one.compute().values())
    assert math.isnan(one.by_layer()[-1]["pathway_consistency"])


@pytest.mark.parametrize("size", [1, 7, 30])
def test_any_split_in_any_order(size):
    one = metric()
    for part in reversed(torch.arange(ITEMS).split(size)):
        one.update(routing(part), part)
    same(one.compute(), whole())


def _rank(rank: int, uneven: bool) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    one = metric()
    for part in torch.arange(ITEMS)[rank::2].split(4) if not uneven else [torch.arange(ITEMS)][rank:]:
        one.update(routing(part), part)
    return one.compute(), one.by_layer()


@pytest.mark.parametrize("uneven", [False, True])
def test_two_processes_give_what_one_gives(uneven):
    for found, layers in in_processes(_rank, uneven):
        same(found, whole())
        assert len(layers) == LAYERS


def test_a_reservoir_keeps_the_same_items_for_pathways_and_counts_all():
    one, other = metric(items=10), metric(items=10)
    one.update(routing(), torch.arange(ITEMS))
    for part in torch.arange(ITEMS).flip(0).split(8):
        other.update(routing(part), part)
    same(one.compute(), other.compute())
    assert one.compute()["router_load_entropy"] == pytest.approx(float(whole()["router_load_entropy"]), rel=1e-12)
    assert one.compute()["pathway_distance"] != pytest.approx(float(whole()["pathway_distance"]), rel=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.clone()])
def test_copies_go_on_and_shards_merge(copied):
    one = metric()
    one.update(routing(torch.arange(10)), torch.arange(10))
    rest = torch.arange(10, ITEMS)
    other = copied(one)
    other.update(routing(rest), rest)
    same(other.compute(), whole())
    shard = metric()
    shard.update(routing(rest), rest)
    one.merge_state(shard)
    same(one.compute(), whole())
    one.reset()
    one.update(routing(), torch.arange(ITEMS))
    same(one.compute(), whole())


def test_forward_gives_the_batch_alone():
    one, part = metric(), torch.arange(12)
    batch = metric()
    batch.update(routing(part), part)
    same(one(routing(part), part), batch.compute())
    rest = torch.arange(12, ITEMS)
    one(routing(rest), rest)
    same(one.compute(), whole())


def test_without_weights_there_is_no_consistency():
    one = gm.RoutingStatistics(LAYERS, EXPERTS)
    one.update(routing())
    assert math.isnan(one.compute()["pathway_consistency"])
    assert math.isfinite(one.compute()["pathway_distance"])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: gm.RoutingStatistics(0, 4), "layers is a whole number"),
    (lambda: gm.RoutingStatistics(2, 4, weights=[torch.ones(4, 2)]), "weights must be 2 tensors \\(4, H\\)"),
    (lambda: gm.RoutingStatistics(2, EXPERTS).update(routing()), "routing must be of 2 layers of 4 experts"),
    (lambda: gm.RoutingStatistics(LAYERS, 5).update(routing()), "of 3 layers of 5 experts"),
    (lambda: metric().update(torch.ones(2, 3)), "routing must be what captured_routing gave"),
    (lambda: metric().compute(), "no points to compute from"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:The ``compute``")
def test_wrong_use_is_refused(call, message):
    with pytest.raises(gm.InputError, match=message):
        call()
