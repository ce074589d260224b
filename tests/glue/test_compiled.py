"""The loops for a compiler: as they are in Python, compiled where numba is installed, and what they leave to others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.nnls.compiled import solve_compiled, suits
from geomonitor.glue.nnls.gram_problem import GramProblem
from geomonitor.markers import anchors, compiled, exchange
from tests.glue.clouds import gaussian_clouds, relu_network
from tests.glue.test_anchors import CASES, EXACT, dense, scipy_weights, unit_problem


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same functions without numba."""
    monkeypatch.setattr(compiled, "_loops", lambda: exchange.solve_samples)


def small_problem() -> tuple[GramProblem, torch.Tensor, torch.Tensor]:
    return unit_problem(*gaussian_clouds(3, 6, 30, 2.0), 4)


def assert_solved(problem: GramProblem, units: torch.Tensor, targets: torch.Tensor) -> None:
    sets, pivots = solve_compiled(problem)
    assert bool(sets.converged.all())
    assert bool((pivots > 0).all())
    expected = scipy_weights(problem, units, targets)
    torch.testing.assert_close(dense(sets, len(units)), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.usefixtures("interpreted")
class TestInterpreted:
    def test_agrees_with_scipy(self) -> None:
        assert_solved(*small_problem())

    def test_careful_steps_alone_reach_the_solution(self, monkeypatch: pytest.MonkeyPatch) -> None:
        add, drop, seen = exchange._add_worst, exchange._drop_until_positive, []

        def careful_add(*args: Any) -> int:
            seen.append(args)
            return add(*args[:4], len(args[3]), *args[5:])

        monkeypatch.setattr(exchange, "_add_worst", careful_add)
        monkeypatch.setattr(exchange, "_drop_until_positive", lambda *args: drop(*args[:-1], True))  # type: ignore[arg-type]
        assert_solved(*small_problem())
        assert len(seen) > 4 * 4  # one column a round

    def test_dependent_columns_are_left_to_the_batch(self) -> None:
        problem, units, targets = small_problem()
        twice = GramProblem(
            problem.gram.repeat(1, 2, 2),
            problem.products.repeat(1, 2),
            problem.signs.repeat(1, 2),
            problem.group,
            problem.segment,
        )
        sets, pivots = solve_compiled(twice)
        assert not bool(sets.converged.all())
        assert bool((pivots[~sets.converged] == -1).all())
        assert bool((sets.columns[~sets.converged] == -1).all())

    def test_too_many_active_columns_are_left_to_the_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem, units, targets = small_problem()
        monkeypatch.setattr(compiled, "MOST_ACTIVE", 2)
        sets, _ = solve_compiled(problem)
        assert not bool(sets.converged.any())
        monkeypatch.setattr(anchors, "suits", lambda problem: True)
        monkeypatch.setattr(anchors, "SMALL", 0)
        whole, _ = anchors._solved(problem)
        assert bool(whole.converged.all())
        expected = scipy_weights(problem, units, targets)
        torch.testing.assert_close(dense(whole, len(units)), expected, rtol=EXACT, atol=EXACT)

    def test_what_is_left_comes_back_in_its_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem, units, targets = small_problem()

        def without_two(problem: GramProblem) -> tuple[anchors.ActiveSets, torch.Tensor]:
            sets, pivots = solve_compiled(problem)
            gone = torch.tensor([1, 2])
            sets.columns[gone], sets.weights[gone], sets.converged[gone] = -1, 0.0, False
            return sets, pivots

        monkeypatch.setattr(anchors, "suits", lambda problem: True)
        monkeypatch.setattr(anchors, "SMALL", 0)
        monkeypatch.setattr(anchors, "solve_compiled", without_two)
        sets, pivots = anchors._solved(problem)
        expected = scipy_weights(problem, units, targets)
        torch.testing.assert_close(dense(sets, len(units)), expected, rtol=EXACT, atol=EXACT)
        assert bool((pivots > 0).all())


@pytest.mark.parametrize("case", CASES)
def test_compiled_loops_agree_with_scipy(case: str) -> None:
    pytest.importorskip("numba")
    assert_solved(*unit_problem(*CASES[case](), 30))


@pytest.mark.parametrize("mode", ["joint", "pairwise"])
def test_numba_changes_speed_only(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    features, labels = relu_network(5, 20, 48, 60)
    with_numba = manifold_geometry(features, labels, directions=40, mode=mode)  # type: ignore[arg-type]
    monkeypatch.setattr(anchors, "suits", lambda problem: False)
    without = manifold_geometry(features, labels, directions=40, mode=mode)  # type: ignore[arg-type]
    # Solutions agree to 1e-10; the errors are square roots of sums of squares of small differences.
    for one, other in ((with_numba.measures, without.measures), (with_numba.standard_error, without.standard_error)):
        torch.testing.assert_close(torch.stack(one), torch.stack(other), rtol=1e-9, atol=1e-12)


def test_without_numba_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _, _ = small_problem()
    monkeypatch.setattr(compiled, "_installed", lambda: True)
    assert suits(problem)
    monkeypatch.setattr(compiled, "_installed", lambda: False)
    assert not suits(problem)
