"""Coherence of gradients in the last layer: torch.func, known sets, many samples, invariances, degenerate input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from geomonitor import GradientCoherence, InputError
from geomonitor.markers.coherence import coherence, coherence_of, coherence_of_products, residuals_of
from tests.processes import in_processes

CLASSES = 4
EXACT = 1e-12


def data(points: int = 60, width: int = 9, outputs: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, the logits of a linear layer, labels."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.randint(min(outputs, CLASSES), (points,), generator=stream)
    centers = torch.randn(CLASSES, width, generator=stream, dtype=torch.float64)
    x = centers[labels] + torch.randn(points, width, generator=stream, dtype=torch.float64)
    weight = torch.randn(outputs, width, generator=stream, dtype=torch.float64) / width**0.5
    return x, x @ weight.T, labels


def gradients(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """``(Q, parameters)`` of the cross-entropy of a linear layer, by torch.func."""
    layer = nn.Linear(x.shape[1], len(weight), bias=bias is not None, dtype=torch.float64)
    parameters = {"weight": weight} | ({} if bias is None else {"bias": bias})

    def loss(parameters: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(layer, parameters, one[None]), label[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, labels)
    return torch.cat([part.flatten(1) for part in found.values()], dim=1)


def by_pairs(g: Tensor) -> float:
    """Mean product of two different gradients over the mean square: the definition, without any of its rewritings."""
    products = g @ g.T
    off_diagonal = products[~torch.eye(len(g), dtype=torch.bool)]
    return float(off_diagonal.mean() / products.diagonal().mean())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("points", "width", "outputs"),
    [(60, 9, 4), (10, 50, 60), (2, 3, 4)],  # the second by products of points, the others by the weights
)
def test_against_gradients_of_each_point(bias, points, width, outputs):
    stream = torch.Generator().manual_seed(1)
    x, _, labels = data(points, width, outputs)
    weight = torch.randn(outputs, width, generator=stream, dtype=torch.float64) / width**0.5
    offset = torch.randn(outputs, generator=stream, dtype=torch.float64) if bias else None
    logits = nn.functional.linear(x, weight, offset)
    g = gradients(x, weight, offset, labels)
    found = coherence(x, logits, labels, bias=bias)
    assert found.value.item() == pytest.approx(by_pairs(g), rel=EXACT, abs=EXACT)
    m_coherence = g.sum(0).square().sum() / g.square().sum()
    assert found.value.item() == pytest.approx((m_coherence.item() - 1) / (points - 1), rel=EXACT, abs=EXACT)
    mean, second = g.mean(0), g.square().sum(1).mean()
    u = (2 * (g @ mean - mean @ mean) - found.value * (g.square().sum(1) - second)) / second
    assert found.standard_error.item() == pytest.approx((u.std() / points**0.5).item(), rel=1e-10)


def test_both_ways_to_add_up_are_one():
    x, logits, labels = data(40, 30, 50)
    residuals = residuals_of(logits, labels)
    assert 40 * (50 + 31) > 50 * 31  # by the weights; some points of them by products
    whole = coherence_of(x, residuals)
    part = coherence_of(x[:15], residuals[:15])
    augmented = torch.cat([x, torch.ones(40, 1)], 1)
    for found, rows in ((whole, slice(None)), (part, slice(15))):
        g = (residuals[rows, :, None] * augmented[rows, None, :]).flatten(1)
        assert found.value.item() == pytest.approx(by_pairs(g), rel=EXACT)


def test_residuals_are_gradients_by_the_logits():
    _, logits, labels = data()
    logits.requires_grad_(True)
    nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    assert torch.allclose(residuals_of(logits, labels), logits.grad, rtol=1e-14, atol=1e-16)
    sure = residuals_of(torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert sure[0, 0].item() == pytest.approx(-2 * math.exp(-60), rel=1e-12)  # p - 1 would be 0
    never = residuals_of(torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]))
    assert never.tolist() == [[0.0, 0.0]]


def test_known_sets():
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    equal = coherence(x.expand(7, -1), torch.zeros(7, 3), torch.zeros(7, dtype=torch.int64))
    assert equal.value.item() == pytest.approx(1, abs=1e-14)
    assert equal.standard_error.item() == pytest.approx(0, abs=1e-12)
    apart = coherence_of(torch.eye(6), torch.ones(6, 1), bias=False)
    assert apart.value.item() == pytest.approx(0, abs=1e-15)
    opposed = coherence_of(torch.ones(2, 1), torch.tensor([[1.0], [-1.0]]))
    assert opposed.value.item() == -1
    # Two classes, each pulled its own way, without a bias: of 10 x 9 ordered pairs 2 x 5 x 4 are equal, others opposed.
    halves = coherence(torch.ones(10, 2), torch.zeros(10, 2), torch.arange(10) % 2, bias=False)
    assert halves.value.item() == pytest.approx((40 - 50) / 90)


def test_it_is_unbiased_and_its_error_is_the_scatter_over_samples():
    x, logits, labels = data(4000, 6, seed=3)
    residuals = residuals_of(logits, labels)
    g = (residuals[:, :, None] * x[:, None, :]).flatten(1)
    truth = float(g.mean(0).square().sum() / g.square().sum(1).mean())
    stream = torch.Generator().manual_seed(4)
    samples = [torch.randint(4000, (50,), generator=stream) for _ in range(600)]
    found = [coherence_of(x[i], residuals[i], bias=False) for i in samples]
    values = torch.stack([one.value for one in found])
    assert abs(values.mean() - truth) < 3 * values.std() / 600**0.5
    biased = (values * 49 + 1) / 50  # what |mean g|^2 / mean |g|^2 gives
    assert abs(biased.mean() - truth) > 10 * values.std() / 600**0.5
    errors = torch.stack([one.standard_error for one in found])
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.15)


def test_points_that_come_in_groups_have_the_error_of_their_groups():
    x, logits, labels = data(30)
    residuals, groups = residuals_of(logits, labels), torch.arange(30)
    one = coherence_of(x, residuals)
    thrice = coherence_of(x.repeat(3, 1), residuals.repeat(3, 1), groups=groups.repeat(3))
    assert coherence_of(x, residuals, groups=groups) == one
    ratio = thrice.standard_error / coherence_of(x.repeat(3, 1), residuals.repeat(3, 1)).standard_error
    assert ratio.item() == pytest.approx((30 / 29 / (90 / 89)) ** 0.5 * 3**0.5, rel=1e-9)


@pytest.mark.parametrize("change", ["loss", "classes", "order", "rotation", "shift of logits"])
def test_what_does_not_matter(change):
    x, logits, labels = data()
    residuals = residuals_of(logits, labels)
    expected = coherence_of(x, residuals)
    stream = torch.Generator().manual_seed(5)
    order = torch.randperm(60, generator=stream)
    if change == "loss":
        found = coherence_of(x, 1e-3 * residuals)
    elif change == "classes":
        found = coherence(x, logits[:, [2, 0, 3, 1]], torch.tensor([1, 3, 0, 2])[labels])
    elif change == "order":
        found = coherence(x[order], logits[order], labels[order])
    elif change == "rotation":
        turn = torch.linalg.qr(torch.randn(9, 9, generator=stream, dtype=torch.float64)).Q
        found = coherence(x @ turn, logits, labels)
    else:
        found = coherence(x, logits + torch.randn(60, 1, generator=stream), labels)
    assert [v.item() for v in found] == pytest.approx([v.item() for v in expected], rel=1e-10)


@pytest.mark.parametrize("scale", [1e-180, 1e180])
def test_size_of_the_features_does_not_overflow(scale):
    x, logits, labels = data()
    expected = coherence(x, logits, labels, bias=False)
    assert coherence(scale * x, logits, labels, bias=False).value.item() == pytest.approx(expected.value.item())
    assert math.isfinite(coherence(scale * x, logits, labels).value)


def test_without_gradients_it_is_undefined():
    x, logits, labels = data()
    fitted = 100 * nn.functional.one_hot(labels, CLASSES).double()
    for found in (
        coherence(x, fitted, labels),
        coherence(x[:1], logits[:1], labels[:1]),
        coherence(0 * x, logits, labels, bias=False),
        coherence_of_products(torch.zeros(0), torch.zeros(0)),
    ):
        assert math.isnan(found.value)
        assert math.isnan(found.standard_error)
    assert math.isfinite(coherence(x, fitted / 10, labels).value)


def test_wrong_input_is_named():
    x, logits, labels = data()
    with pytest.raises(InputError, match=r"labels in 0 \.\. C - 1"):
        coherence(x, logits, labels + 1)
    with pytest.raises(InputError, match="60 and 59 rows"):
        coherence(x, logits[:59], labels[:59])
    with pytest.raises(InputError, match="finite"):
        coherence(x, logits * math.nan, labels)


def metric(**options) -> GradientCoherence:
    return GradientCoherence(CLASSES, **{"per_class": 100} | options)


def test_the_metric_is_the_function():
    x, logits, labels = data()
    one, other = metric(), metric()
    one.update(x, logits, labels)
    for part in torch.randperm(60, generator=torch.Generator().manual_seed(6)).split(7):
        other.update(x[part], logits[part], labels[part], ids=part)
    expected = coherence(x, logits, labels)
    for held in (one.compute(), other.compute()):
        assert [held[name].item() for name in GradientCoherence.names] == pytest.approx(
            [v.item() for v in expected], rel=1e-10
        )
    of_a_batch = metric(bias=False)(x, logits, labels)["coherence"].item()
    assert of_a_batch == pytest.approx(coherence(x, logits, labels, bias=False).value.item(), rel=1e-10)


def test_the_metric_takes_more_outputs_than_classes():
    x, logits, labels = data(outputs=7)
    held = metric(outputs=7)
    held.update(x.float(), logits, labels)
    assert held.compute()["coherence"].item() == pytest.approx(coherence(x.float(), logits, labels).value.item())
    with pytest.raises(InputError, match=r"7 columns; got \(60, 4\)"):
        held.update(x, logits[:, :4], labels)
    with pytest.raises(InputError, match="4 classes, outputs=3"):
        metric(outputs=3)
    held = metric()
    held.update(x, logits[:, :4] * math.nan, labels)
    with pytest.raises(InputError, match="features and logits must be finite"):
        held.compute()


def test_a_metric_of_a_subset_keeps_as_many_of_each_class():
    x, logits, labels = data(200)
    held, merged, other = metric(per_class=10), metric(per_class=10), metric(per_class=10)
    ids = torch.arange(200)
    held.update(x, logits, labels, ids)
    merged.update(x[:90], logits[:90], labels[:90], ids[:90])
    other.update(x[90:], logits[90:], labels[90:], ids[90:])
    merged.merge_state(other)
    assert len(held._points()[0]) == 40
    found, expected = merged.compute(), held.compute()
    assert [found[name].item() for name in held.names] == pytest.approx(
        [expected[name].item() for name in held.names], rel=1e-12
    )


def _part(rank: int) -> list[float]:
    x, logits, labels = data()
    held, mine = metric(), torch.arange(60)[rank::2]
    held.update(x[mine], logits[mine], labels[mine], mine)
    empty = metric()
    if not rank:
        empty.update(x, logits, labels, torch.arange(60))
    return [*(v.item() for v in held.compute().values()), *(v.item() for v in empty.compute().values())]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_give_what_one_gives():
    x, logits, labels = data()
    expected = [v.item() for v in coherence(x, logits, labels)]
    for found in in_processes(_part):
        assert found == pytest.approx(expected * 2, rel=1e-10)
