"""The solvers: exact solutions, hard batches, methods for what is left, and weights that are unique by choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls  # type: ignore[import-untyped]
from torch import Tensor

from geomonitor.glue.anchors import Anchors, solve_anchors
from geomonitor.glue.draws import draw_dichotomies, draw_directions
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.nnls import block_pivoting, gram_problem
from geomonitor.glue.nnls import solve as solve_module
from geomonitor.glue.nnls.block_pivoting import solve_batch
from geomonitor.glue.nnls.gram_problem import ActiveSets, GramProblem, signed_gradient
from geomonitor.glue.nnls.lawson_hanson import lawson_hanson
from geomonitor.glue.nnls.minimal_norm import are_dependent, minimal_norm
from geomonitor.glue.nnls.semismooth_newton import semismooth_newton
from geomonitor.glue.nnls.solve import FeatureSpace, Solution, solve
from geomonitor.glue.pseudo_inverse import projected_square
from tests.glue.clouds import gaussian_clouds, relu_network

# Weights of well separated points agree to rounding times a condition number of a few thousand.
EXACT = 1e-10


def unit_problem(
    features: Tensor, labels: Tensor, samples: int, *, seed: int = 0
) -> tuple[GramProblem, Tensor, Tensor]:
    """A batch in Gram space, its unit columns and its unit targets; classes must be of equal size."""
    units = features.double() / features.double().norm(dim=1, keepdim=True)
    targets = draw_directions(samples, units.shape[1], seed=seed)
    targets = targets / targets.norm(dim=1, keepdim=True)
    classes = int(labels.max()) + 1
    signs = draw_dichotomies(samples, classes, "random", seed=seed)[:, labels]
    group = torch.zeros(samples, dtype=torch.int64)
    segment = len(labels) // classes
    gram = (units @ units.T)[None]
    return GramProblem(gram, targets @ units.T * signs, signs, group, segment, units), units, targets


def dense(sets: ActiveSets, columns: int) -> Tensor:
    return sets.dense(columns)


def scipy_weights(problem: GramProblem, units: Tensor, targets: Tensor) -> Tensor:
    rows = [
        nnls(np.ascontiguousarray((units * y[:, None]).numpy().T), t.numpy(), maxiter=30 * len(y))[0]
        for y, t in zip(problem.signs, targets, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))


CASES = {
    "clouds": lambda: gaussian_clouds(5, 12, 80, 1.0),
    "network": lambda: relu_network(5, 12, 80, 50),
    "overlapping": lambda: gaussian_clouds(4, 15, 64, 3.0),
    "more points than dimensions": lambda: gaussian_clouds(3, 60, 30, 0.2),
}


@pytest.mark.parametrize("case", CASES)
def test_batch_agrees_with_scipy(case: str) -> None:
    problem, units, targets = unit_problem(*CASES[case](), 30)
    sets = solve_batch(problem)
    assert bool(sets.converged.all())
    found = dense(sets, len(units))
    torch.testing.assert_close(found, scipy_weights(problem, units, targets), rtol=EXACT, atol=EXACT)
    assert float(signed_gradient(problem, sets.columns, sets.weights).max()) < EXACT


def test_groups_do_not_mix() -> None:
    one, units_one, _ = unit_problem(*gaussian_clouds(2, 10, 40, 1.0), 8)
    two, _, _ = unit_problem(*gaussian_clouds(2, 10, 40, 1.0, seed=1), 8, seed=1)
    both = GramProblem(
        torch.cat((one.gram, two.gram)),
        torch.cat((one.products, two.products)),
        torch.cat((one.signs, two.signs)),
        torch.arange(2).repeat_interleave(8),
        10,
    )
    expected = torch.cat([dense(solve_batch(problem), len(units_one)) for problem in (one, two)])
    torch.testing.assert_close(dense(solve_batch(both), len(units_one)), expected, rtol=EXACT, atol=EXACT)


def test_small_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, units, _ = unit_problem(*gaussian_clouds(5, 12, 80, 1.0), 30)
    expected = dense(solve_batch(problem), len(units))
    monkeypatch.setattr(gram_problem, "BLOCK_BYTES", 1)
    torch.testing.assert_close(dense(solve_batch(problem), len(units)), expected, rtol=EXACT, atol=EXACT)


def test_careful_rounds_alone_reach_the_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no progress ever accepted as ordinary, Lawson-Hanson steps do all the work."""
    problem, units, targets = unit_problem(*gaussian_clouds(4, 10, 50, 2.0), 6)
    empty = block_pivoting._empty_state

    def careful(problem: GramProblem) -> block_pivoting._State:
        state = empty(problem)
        return state._replace(careful=~state.careful)

    enlarge = block_pivoting._enlarge

    def always(*args: object) -> block_pivoting._State:
        state = enlarge(*args)  # type: ignore[arg-type]
        return state._replace(careful=torch.ones_like(state.careful))

    monkeypatch.setattr(block_pivoting, "_empty_state", careful)
    monkeypatch.setattr(block_pivoting, "_enlarge", always)
    sets = solve_batch(problem, rounds=500)
    assert bool(sets.converged.all())
    torch.testing.assert_close(dense(sets, len(units)), scipy_weights(problem, units, targets), rtol=EXACT, atol=EXACT)


class TestFallback:
    """What block pivoting leaves, by the one method or the other."""

    problem, units, targets = unit_problem(*gaussian_clouds(5, 12, 80, 1.0), 6)
    expected = scipy_weights(problem, units, targets)
    space = FeatureSpace(lambda group: TestFallback.units, lambda row: TestFallback.targets[row])

    @pytest.fixture(autouse=True)
    def capped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(solve_module, "suits", lambda problem: False)
        monkeypatch.setattr(solve_module, "solve_batch", lambda problem: solve_batch(problem, rounds=1))

    def assert_solved(self) -> Solution:
        found = solve(self.problem, self.space)
        assert bool(found.converged.all())
        assert float(found.residual.max()) < EXACT
        torch.testing.assert_close(dense(found.sets, len(self.units)), self.expected, rtol=EXACT, atol=EXACT)
        return found

    def test_capped_rounds_are_reported_and_finished(self) -> None:
        assert not bool(solve_batch(self.problem, rounds=1).converged.any())
        self.assert_solved()

    @pytest.mark.parametrize(("small", "taken"), [(2**16, "lawson_hanson"), (0, "semismooth_newton")])
    def test_size_decides(self, monkeypatch: pytest.MonkeyPatch, small: int, taken: str) -> None:
        monkeypatch.setattr(solve_module, "SMALL", small)
        other = {"lawson_hanson": "semismooth_newton", "semismooth_newton": "lawson_hanson"}[taken]
        monkeypatch.setattr(solve_module, other, None)  # calling it would raise
        self.assert_solved()

    def test_scipy_where_newton_finds_nothing_exact(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(solve_module, "SMALL", 0)
        monkeypatch.setattr(solve_module, "semismooth_newton", lambda signed, target, ridge: None)
        self.assert_solved()

    def test_newton_where_scipy_is_not_exact(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = lambda signed, target, ridge: np.full(signed.shape[1], 0.1)  # noqa: E731
        monkeypatch.setattr(solve_module, "lawson_hanson", wrong)
        self.assert_solved()

    def test_what_nothing_solves_is_not_converged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(solve_module, "lawson_hanson", lambda signed, target, ridge: None)
        monkeypatch.setattr(solve_module, "semismooth_newton", lambda signed, target, ridge: None)
        assert not bool(solve(self.problem, self.space).converged.any())


class TestUnsolved:
    def test_a_sample_that_nothing_solves_is_counted_out_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        features, labels = gaussian_clouds(3, 6, 20, 1.0)
        whole = manifold_geometry(features, labels, directions=20)

        def unsolved(*args: object) -> Anchors:
            anchors = solve_anchors(*args)  # type: ignore[arg-type]
            return anchors._replace(converged=torch.arange(20) != 3)

        monkeypatch.setattr("geomonitor.glue.joint.solve_anchors", unsolved)
        with pytest.warns(UserWarning, match="1 of 20 directions did not converge") as caught:
            g = manifold_geometry(features, labels, directions=20)
        assert len(caught) == 1
        assert not bool(g.converged)
        assert int(g.excluded) == 1
        kept = torch.arange(20) != 3
        assert float(g.capacity) == pytest.approx(3 / float(whole.samples.a[kept].mean()), rel=EXACT)


class TestSemismoothNewton:
    def test_inside_the_cone_the_weights_are_the_smallest(self) -> None:
        units, _ = gaussian_clouds(1, 200, 20, 1.0)
        signed = (units / units.norm(dim=1, keepdim=True)).numpy().T
        target = signed @ np.abs(np.random.default_rng(0).standard_normal(200))
        target /= np.linalg.norm(target)
        solution = semismooth_newton(signed, target)
        assert solution is not None
        weights, smallest = solution
        assert smallest
        np.testing.assert_allclose(signed @ weights, target, atol=1e-12)
        other, _ = nnls(signed, target)
        assert np.linalg.norm(weights) < np.linalg.norm(other)
        # Optimality: the positive weights are linear in the columns, and the others would be negative.
        w = np.linalg.lstsq(signed[:, weights > 0].T, weights[weights > 0], rcond=None)[0]
        np.testing.assert_allclose(np.maximum(signed.T @ w, 0), weights, atol=1e-9)

    def test_outside_the_cone_it_agrees_with_scipy(self) -> None:
        problem, units, targets = unit_problem(*gaussian_clouds(3, 60, 30, 0.2), 5)
        for y, t, expected in zip(problem.signs, targets, scipy_weights(problem, units, targets), strict=True):
            solution = semismooth_newton((units * y[:, None]).numpy().T, t.numpy())
            assert solution is not None
            np.testing.assert_allclose(solution[0], expected.numpy(), atol=EXACT)

    def test_crowded_samples_of_a_batch_take_this_way(self) -> None:
        features, labels = gaussian_clouds(40, 20, 130, 1.0)
        g = manifold_geometry(features, labels, directions=6, dichotomies="random")
        assert bool(g.converged)
        assert float(g.max_kkt_residual) < 1e-8


class TestMinimalNorm:
    def test_of_repeated_columns_is_an_even_split(self) -> None:
        gram = np.ones((3, 3))
        np.testing.assert_allclose(minimal_norm(gram, np.array([3.0, 0.0, 0.0])), np.ones(3), atol=1e-12)

    def test_keeps_the_projection_and_is_unique(self) -> None:
        columns = np.random.default_rng(1).standard_normal((30, 8))
        columns /= np.linalg.norm(columns, axis=1, keepdims=True)
        gram = columns @ columns.T
        start = np.abs(np.random.default_rng(2).standard_normal(30)) * (np.arange(30) < 12)
        weights = minimal_norm(gram, start)
        np.testing.assert_allclose(weights @ columns, start @ columns, atol=1e-11)
        np.testing.assert_allclose(minimal_norm(gram, weights), weights, atol=1e-10)
        assert np.linalg.norm(weights) < np.linalg.norm(start)

    def test_starts_far_from_the_solution(self) -> None:
        """400 random points in 192 dimensions: SciPy's weights are of 192 of them, the smallest of another 200."""
        stream = torch.Generator().manual_seed(0)
        problem, units, targets = unit_problem(torch.randn(400, 192, generator=stream), torch.arange(400) // 40, 20)
        for row in (1, 2, 5):
            signed = (units * problem.signs[row][:, None]).numpy().T
            expected = semismooth_newton(signed, targets[row].numpy())
            assert expected is not None
            start = lawson_hanson(signed, targets[row].numpy())
            assert start is not None
            np.testing.assert_allclose(minimal_norm(signed.T @ signed, start), expected[0], atol=1e-9)

    def test_dependence(self) -> None:
        columns = np.eye(4)[:, :3]
        columns[3] = [0.6, 0.8, 0.0]
        assert are_dependent(columns @ columns.T)
        assert not are_dependent(columns[:3] @ columns[:3].T)


class TestProjectedSquare:
    @pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
    def test_agrees_with_least_squares(self, scale: float) -> None:
        rows, _ = gaussian_clouds(1, 5, 12, 1.0)
        t = draw_directions(1, 12, seed=0)[0]
        rows = rows * scale
        expected = np.linalg.lstsq(rows.numpy().T, t.numpy(), rcond=None)[0] @ (rows @ t).numpy()
        found = projected_square(rows @ rows.T, rows @ t, (rows @ rows.T).diagonal().amax())
        assert float(found) == pytest.approx(float(expected), rel=1e-12)

    def test_dependent_and_zero_rows(self) -> None:
        rows = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 0], [1, 1, 0]]).double()
        t = torch.tensor([3.0, 4.0, 5.0]).double()
        assert float(projected_square(rows @ rows.T, rows @ t, torch.tensor(4.0))) == pytest.approx(25.0, rel=1e-12)


def test_nearly_dependent_columns_are_dropped_as_by_a_new_factor() -> None:
    stream = torch.Generator().manual_seed(3)
    features = torch.randn(6, 40, generator=stream, dtype=torch.float64)
    features = torch.cat((features, features + 1e-5 * torch.randn(6, 40, generator=stream, dtype=torch.float64)))
    problem, _, _ = unit_problem(features, torch.arange(2).repeat_interleave(6), 50)
    columns = torch.arange(12).expand(50, -1).clone()
    careful = torch.zeros(50, dtype=torch.bool)
    solution, right = block_pivoting.drop_until_positive(problem, columns, torch.zeros(50, 12).double(), careful)
    dropped = solution <= 0
    assert bool(dropped.any())
    again = gram_problem.solve_on(problem, columns.masked_fill(dropped, -1)).solution
    torch.testing.assert_close(solution, again, rtol=1e-6, atol=1e-9)
