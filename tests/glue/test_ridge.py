"""The ridge on the Gram matrix: its problem is solved, its limit is the definition, rounding no longer matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.glue.draws import draw_dichotomies, draw_directions
from geomonitor.glue.joint import anchor_points
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.nnls import solve as solve_module
from geomonitor.glue.nnls.block_pivoting import solve_batch
from geomonitor.glue.nnls.block_pivoting_compiled import solve_compiled
from geomonitor.glue.nnls.gram_problem import ActiveSets, GramProblem
from geomonitor.glue.nnls.lawson_hanson import lawson_hanson
from geomonitor.glue.nnls.semismooth_newton import semismooth_newton
from geomonitor.glue.nnls.solve import FeatureSpace, solve
from tests.glue.clouds import gaussian_clouds, relu_network
from tests.glue.nnls_reference import projected_square
from tests.glue.test_anchors import unit_problem

CASES = {
    "clouds": lambda: gaussian_clouds(5, 12, 80, 1.0),
    "more points than dimensions": lambda: gaussian_clouds(3, 60, 30, 0.2),
    "inside the cone": lambda: gaussian_clouds(4, 40, 20, 3.0),
    "rank 5": lambda: bottleneck(torch.float64),
}
RIDGES = [1e-2, 1e-4]
# The solution feels an error of the gradient divided by the ridge.
EXACT = 1e-9


def bottleneck(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A linear bottleneck of rank 5 in 64 dimensions, four classes of 30 points."""
    stream = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 1, 5, generator=stream, dtype=torch.float64)
    inner = (centers + 0.3 * torch.randn(4, 30, 5, generator=stream, dtype=torch.float64)).flatten(0, 1)
    axes = torch.randn(5, 64, generator=stream, dtype=torch.float64)
    return (inner @ axes).to(dtype), torch.arange(4).repeat_interleave(30)


def assert_optimal(weights: Tensor, problem: GramProblem) -> None:
    """The conditions of Karush, Kuhn and Tucker, which the only solution of a strictly convex problem satisfies."""
    products, signs = problem.products, problem.signs
    gradient = products - signs * ((signs * weights) @ problem.gram[0]) - problem.ridge * weights
    assert float(weights.min()) >= 0
    assert float(gradient.max()) < 1e-11
    assert float((gradient * (weights > 0)).abs().max()) < 1e-11


def assert_solved(sets: ActiveSets, problem: GramProblem) -> None:
    """One direction in twenty may be left to the fallback."""
    rows = sets.converged.nonzero()[:, 0]
    assert len(rows) >= 19
    assert_optimal(sets.select(rows).dense(problem.products.shape[1]), problem.select(rows))


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("case", CASES)
class TestEveryAlgorithmSolvesIt:
    def test_pivoting_in_batches(self, case: str, ridge: float) -> None:
        problem, _, _ = unit_problem(*CASES[case](), 20)
        problem = problem._replace(ridge=ridge)
        assert_solved(solve_batch(problem), problem)

    def test_pivoting_compiled(self, case: str, ridge: float) -> None:
        pytest.importorskip("numba")
        problem, _, _ = unit_problem(*CASES[case](), 20)
        problem = problem._replace(ridge=ridge)
        assert_solved(solve_compiled(problem), problem)

    def test_one_by_one(self, case: str, ridge: float) -> None:
        problem, units, targets = unit_problem(*CASES[case](), 4)
        problem = problem._replace(ridge=ridge)
        for row, (y, t) in enumerate(zip(problem.signs, targets, strict=True)):
            signed = (units * y[:, None]).numpy().T
            by_scipy, by_newton = lawson_hanson(signed, t.numpy(), ridge), semismooth_newton(signed, t.numpy(), ridge)
            assert by_scipy is not None
            assert by_newton is not None
            np.testing.assert_allclose(by_scipy, by_newton[0], atol=EXACT)
            assert_optimal(torch.from_numpy(by_newton[0])[None], problem.select(torch.tensor([row])))


def test_newton_goes_on_while_the_gradient_grows() -> None:
    """400 random points in 192 dimensions: from one ridge to one a hundredth of it the gradient grows for 20 steps."""
    stream = torch.Generator().manual_seed(0)
    problem, units, targets = unit_problem(torch.randn(400, 192, generator=stream), torch.arange(400) // 40, 6)
    problem = problem._replace(ridge=1e-4)
    found = [
        semismooth_newton((units * y[:, None]).numpy().T, t.numpy(), 1e-4)
        for y, t in zip(problem.signs, targets, strict=True)
    ]
    assert_optimal(torch.from_numpy(np.stack([one[0] for one in found if one is not None])), problem)


@pytest.mark.parametrize("newton", [True, False])
def test_the_fallback_solves_the_problem_with_the_ridge(monkeypatch: pytest.MonkeyPatch, newton: bool) -> None:
    problem, units, targets = unit_problem(*CASES["rank 5"](), 4)
    problem = problem._replace(ridge=1e-3)
    monkeypatch.setattr(solve_module, "suits", lambda problem: False)
    monkeypatch.setattr(solve_module, "solve_batch", lambda problem, *_, **__: solve_batch(problem, rounds=1))
    if not newton:
        monkeypatch.setattr(solve_module, "semismooth_newton", lambda signed, target, ridge: None)
    found = solve(problem, FeatureSpace(lambda group: units, lambda row: targets[row]))
    assert bool(found.converged.all())
    assert_optimal(found.sets.dense(len(units)), problem)


def geometry(features: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return torch.stack(manifold_geometry(features, labels, directions=60, **options).measures)


@pytest.mark.parametrize("mode", ["joint", "pairwise"])
def test_a_vanishing_ridge_is_the_definition(mode: str) -> None:
    """The error is of first order in the ridge."""
    features, labels = relu_network(5, 20, 64, 60)
    exact = geometry(features, labels, mode=mode)
    errors = [(geometry(features, labels, mode=mode, ridge=r) - exact).abs().max() for r in (1e-4, 1e-6, 1e-8)]
    assert 0 < float(errors[2]) < 1e-6
    assert 50 < float(errors[0] / errors[1]) < 200
    assert 50 < float(errors[1] / errors[2]) < 200


def test_zero_is_the_default() -> None:
    features, labels = gaussian_clouds(4, 10, 32, 0.5)
    assert torch.equal(geometry(features, labels), geometry(features, labels, ridge=0))


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("ridge", [1e-3, 1e-4])
@pytest.mark.parametrize("mode", ["joint", "pairwise"])
def test_rounding_to_float32_does_not_matter(mode: str, ridge: float, numba: bool, monkeypatch: Any) -> None:
    """0.1 standard errors of the bottleneck; without a ridge the radius moves by more than one."""
    if not numba:
        monkeypatch.setattr(solve_module, "suits", lambda problem: False)
    options = {"mode": mode, "ridge": ridge}
    exact, rounded = (
        manifold_geometry(*bottleneck(dtype), **options)  # type: ignore[arg-type]
        for dtype in (torch.float64, torch.float32)
    )
    assert bool(rounded.converged)
    for name in ("capacity", "dimension", "radius", "utility"):
        moved = getattr(rounded, name) - getattr(exact, name)
        assert abs(float(moved)) < 0.1 * float(getattr(exact.standard_error, name))


@pytest.mark.parametrize("rank", [2, 3])
def test_directions_on_input_of_low_rank_are_solved(rank: int) -> None:
    """Of 200 directions at rank 2 up to 75 were left out without a ridge."""
    stream = torch.Generator().manual_seed(0)
    features = (torch.randn(300, rank, generator=stream) @ torch.randn(rank, 64, generator=stream)).relu()
    g = manifold_geometry(features, torch.arange(300) % 10, ridge=1e-3)
    assert int(g.excluded) <= 2
    assert float(g.max_kkt_residual) <= 1e-8


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1e-1])
def test_identity_and_the_scalar_a(ridge: float) -> None:
    features, labels = relu_network(5, 20, 64, 60)
    t, y = draw_directions(40, 64, seed=0), draw_dichotomies(40, 5, "balanced", seed=0)
    g = manifold_geometry(features, labels, directions=t, dichotomies=y, ridge=ridge)
    assert float(g.utility * (1 + g.radius**-2) / g.dimension) == pytest.approx(float(g.capacity), rel=1e-8)
    anchors = anchor_points(features, labels, t, y, ridge=ridge)
    expected = [projected_square(s.numpy(), d.numpy()) for s, d in zip(anchors, t, strict=True)]
    torch.testing.assert_close(g.samples.a, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=0)


def test_it_is_in_the_protocol() -> None:
    features, labels = gaussian_clouds(3, 6, 20, 1.0)
    with_ridge = manifold_geometry(features, labels, directions=10, ridge=1e-3)
    assert with_ridge.samples.protocol.ridge == 1e-3
    with pytest.raises(InputError, match="ridge"):
        with_ridge.difference(manifold_geometry(features, labels, directions=10))


@pytest.mark.parametrize("ridge", [-1e-3, float("nan"), float("inf"), "1e-3", True, None])
def test_refused(ridge: Any) -> None:
    with pytest.raises(InputError, match="ridge must be a finite number"):
        manifold_geometry(*gaussian_clouds(3, 6, 20, 1.0), ridge=ridge)
