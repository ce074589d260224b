"""Linear factors of two attributes: analysis of variance by least squares, known codes, invariances, wrong input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from geomonitor import FactorStructure, InputError
from geomonitor.markers.factors import factor_estimates, linear_factors
from tests.processes import in_processes

A, B, WIDTH = 4, 5, 60


def code(
    kind: str, points: int, *, noise: float = 1.0, seed: int = 0, width: int = WIDTH
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of A x B cells whose means add up, are independent, or half of each."""
    stream = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, width, generator=stream, dtype=torch.float64) for n in (A, B)]
    together = torch.randn(A, B, width, generator=stream, dtype=torch.float64)
    added = (parts[0][:, None] + parts[1][None]) / 2**0.5
    cells = {"additive": added, "none": together, "half": (added + together) / 2**0.5}[kind]
    first, second = (
        grid.flatten().repeat(points) for grid in torch.meshgrid(torch.arange(A), torch.arange(B), indexing="ij")
    )
    x = cells[first, second] + noise * torch.randn(len(first), width, generator=stream, dtype=torch.float64)
    return x, first, second


def by_least_squares(x: Tensor, first: Tensor, second: Tensor) -> float:
    """R^2 from residual sums of squares of three linear models, as a two-way analysis of variance has them."""
    one, other = (np.eye(int(part.max()) + 1)[part.numpy()] for part in (first, second))
    designs = (
        np.ones((len(x), 1)),
        np.hstack([one, other]),
        np.einsum("qa,qb->qab", one, other).reshape(len(x), -1),
    )
    rest = [((x.numpy() - d @ np.linalg.lstsq(d, x.numpy(), rcond=None)[0]) ** 2).sum() for d in designs]
    cells = designs[2].shape[1]
    per_cell = len(x) / cells  # balanced: sums of squares of cell means, times M
    within = rest[2] / (len(x) - cells)
    inside = (one.shape[1] - 1) * (other.shape[1] - 1)
    interaction, whole = (rest[1] - rest[2]) / per_cell, (rest[0] - rest[2]) / per_cell
    return 1 - (interaction - inside * within / per_cell) / (whole - (cells - 1) * within / per_cell)


@pytest.mark.parametrize("kind", ["additive", "half", "none"])
@pytest.mark.parametrize("points", [2, 7])
def test_against_an_analysis_of_variance(kind, points):
    x, first, second = code(kind, points)
    found = linear_factors(x, first, second)
    expected = by_least_squares(x, first, second)
    assert found.linear_factor_r2.item() == pytest.approx(expected, rel=1e-10)
    chance = (A + B - 2) / (A * B - 1)
    assert found.linear_factor_score.item() == pytest.approx((expected - chance) / (1 - chance), rel=1e-10)


@pytest.mark.parametrize("points", [5, 20, 100])
@pytest.mark.parametrize(("kind", "r2"), [("additive", 1.0), ("none", (A + B - 2) / (A * B - 1)), ("half", None)])
def test_what_is_read_does_not_depend_on_the_points_in_a_cell(kind, r2, points):
    # Of the half code both parts have the variance 1/2 in the cells' space: (1/2 + 1/2 r0') with sampled parts.
    values = torch.stack(
        [torch.stack(linear_factors(*code(kind, points, seed=seed, width=200))[:2]) for seed in range(12)]
    )
    score, found = values.mean(dim=0).tolist()
    if r2 is None:
        assert 0.55 < found < 0.75
        assert 0.3 < score < 0.6
    else:
        assert found == pytest.approx(r2, abs=0.02)
        assert score == pytest.approx(1.0 if kind == "additive" else 0.0, abs=0.03)


def test_cells_of_several_sizes_keep_it_unbiased():
    scores = []
    for seed in range(20):
        x, first, second = code("additive", 12, noise=2, seed=seed, width=200)
        kept = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) < (first + 1) / A
        kept[: A * B] = True
        scores.append(linear_factors(x[kept], first[kept], second[kept]).linear_factor_score.item())
    assert np.mean(scores) == pytest.approx(1, abs=0.03)


def test_orthogonality_of_known_parts():
    first, second = (grid.flatten() for grid in torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij"))
    square = torch.stack([first, second], 1).double()
    assert linear_factors(square, first, second).factor_orthogonality.item() == pytest.approx(0, abs=1e-15)
    line = (first + 3 * second).double()[:, None]
    assert linear_factors(line, first, second).factor_orthogonality.item() == pytest.approx(1)
    slanted = square @ torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    assert linear_factors(slanted, first, second).factor_orthogonality.item() == pytest.approx(0.5)


def test_orthogonality_of_random_parts():
    found = [
        linear_factors(*code("additive", 2, noise=0.01, seed=s, width=400)).factor_orthogonality for s in range(20)
    ]
    assert torch.stack(found).mean().item() == pytest.approx(math.sqrt(2 / (math.pi * 400)), rel=0.1)


@pytest.mark.parametrize("change", ["scale", "shift", "rotation", "order", "names", "attributes"])
def test_what_does_not_matter(change):
    x, first, second = code("half", 6)
    expected = [v.item() for v in linear_factors(x, first, second)]
    stream = torch.Generator().manual_seed(1)
    if change == "scale":
        x = 1e-170 * x
    elif change == "shift":
        x = x + 1e3
    elif change == "rotation":
        x = x @ torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=stream, dtype=torch.float64)).Q
    elif change == "order":
        order = torch.randperm(len(x), generator=stream)
        x, first, second = x[order], first[order], second[order]
    elif change == "names":
        first, second = torch.tensor([7, -2, 1000, 3])[first], 9 - second
    else:
        first, second = second, first
    assert [v.item() for v in linear_factors(x, first, second)] == pytest.approx(expected, rel=1e-9)


def test_without_structure_it_is_undefined():
    first, second = torch.tensor([0, 0, 1, 1]).repeat(3), torch.tensor([0, 1, 0, 1]).repeat(3)
    assert all(math.isnan(value) for value in linear_factors(torch.ones(12, 3), first, second))
    alone = linear_factors(torch.randn(4, 3), first[:4], second[:4])
    assert math.isnan(alone.linear_factor_score)  # no cell has two points
    assert math.isfinite(alone.factor_orthogonality)
    noise = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    noise = noise - torch.cat([noise.reshape(3, 4, 3).mean(0)] * 3)  # cell means that differ by rounding
    assert math.isnan(linear_factors(noise, first, second).linear_factor_r2)


def test_wrong_input_is_named():
    x, first, second = code("none", 2)
    with pytest.raises(InputError, match="two values at least; got 1 and 5"):
        linear_factors(x, 0 * first, second)
    kept = (first != 2) | (second != 3)
    with pytest.raises(InputError, match="value number 2 of the first has none with the value number 3 of the second"):
        linear_factors(x[kept], first[kept], second[kept])
    with pytest.raises(InputError, match="labels must have shape"):
        linear_factors(x, first[:-1], second)


def metric() -> FactorStructure:
    return FactorStructure((A, B))


def test_the_metric_is_the_function():
    x, first, second = code("half", 6)
    whole, parts = metric(), metric()
    whole.update(x, first, second)
    for part in torch.randperm(len(x)).split(11):
        parts.update(x[part], first[part], second[part])
    expected = [v.item() for v in linear_factors(x, first, second)]
    for held in (whole, parts):
        found = held.compute()
        assert [found[name].item() for name in held.names] == pytest.approx(expected, rel=1e-9)
    batch = metric()(x[:5], first[:5], second[:5])  # lacks combinations
    assert all(math.isnan(value) for value in batch.values())


def test_values_out_of_range_are_named():
    x, first, second = code("half", 2)
    held = metric()
    held.update(x, first, second + 1)  # 5 of the second would be the next cell
    with pytest.raises(InputError, match="8 were not"):
        held.compute()
    with pytest.raises(InputError, match="shape"):
        FactorStructure((4, 0))


def _part(rank: int) -> list[float]:
    x, first, second = code("half", 6)
    held = metric()
    held.update(x[rank::2], first[rank::2], second[rank::2])
    return [value.item() for value in held.compute().values()]


def test_two_processes_give_what_one_gives():
    expected = [v.item() for v in linear_factors(*code("half", 6))]
    for found in in_processes(_part):
        assert found == pytest.approx(expected, rel=1e-9)


def test_errors_are_those_of_leaving_points_out():
    x, first, second = code("half", 5, noise=2.0)
    kept = torch.ones(len(x), dtype=torch.bool)
    kept[[3, 40]] = False  # cells of several sizes
    x, first, second = x[kept] + 7, first[kept], second[kept]
    cells = first * B + second
    found = factor_estimates(x, cells, (A, B))
    without = [
        torch.stack(linear_factors(*(part[torch.arange(len(x)) != i] for part in (x, first, second))))
        for i in range(len(x))
    ]
    for name, place in (("linear_factor_score", 0), ("factor_orthogonality", 2)):
        values = torch.stack(without)[:, place]
        square = sum(
            (n - 1) / n * (values[cells == c] - values[cells == c].mean()).square().sum().item()
            for c, n in enumerate(torch.bincount(cells).tolist())
        )
        assert found[name].standard_error.item() == pytest.approx(square**0.5, rel=1e-9)
        assert found[name].value.item() == linear_factors(x, first, second)._asdict()[name].item()


@pytest.mark.parametrize(("kind", "most"), [("half", 1.25), ("none", 1.25), ("additive", 1.6)])
def test_errors_are_the_spread_over_other_points(kind, most):
    # Where the parts add up exactly, the score is at its largest: no term of first order is left, and the jackknife of
    # one of second order is too large by the square root of 2.
    cells, spread, claimed = torch.arange(A * B).repeat(20), [], []
    means = code(kind, 1, noise=0.0)
    order = torch.argsort(means[1] * B + means[2])
    for seed in range(120):
        noise = torch.randn(len(cells), WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = factor_estimates(means[0][order][cells] + noise, cells, (A, B)).values()
        spread.append(torch.stack([each.value for each in found]))
        claimed.append(torch.stack([each.standard_error for each in found]))
    ratio = torch.stack(claimed).square().mean(dim=0).sqrt() / torch.stack(spread).std(dim=0)
    assert ((ratio > 0.85) & (ratio < most)).all(), ratio


def test_errors_do_not_depend_on_unit_origin_or_rotation_and_a_cell_of_one_point_has_none():
    x, first, second = code("half", 4)
    cells = first * B + second
    turned = 1e-180 * (x @ torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q) + 1e-180
    for name, found in factor_estimates(x, cells, (A, B)).items():
        other = factor_estimates(turned, cells, (A, B))[name]
        assert other.standard_error.item() == pytest.approx(found.standard_error.item(), rel=1e-6)
    kept = torch.ones(len(x), dtype=torch.bool)
    kept[torch.nonzero(cells == 4)[1:, 0]] = False
    for found in factor_estimates(x[kept], cells[kept], (A, B)).values():
        assert math.isfinite(found.value)
        assert math.isnan(found.standard_error)
    assert math.isnan(factor_estimates(torch.ones(40, 3), torch.arange(20).repeat(2), (A, B))["linear_factor_score"][1])
