"""The loops for a compiler: as they are in Python, compiled where numba is installed, and what they leave to others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from geomonitor.errors import GeomonitorWarning
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.nnls import block_pivoting_compiled as compiled
from geomonitor.glue.nnls import block_pivoting_loops as loops
from geomonitor.glue.nnls import solve as solve_module
from geomonitor.glue.nnls.block_pivoting_compiled import solve_compiled, suits
from geomonitor.glue.nnls.gram_problem import ActiveSets, GramProblem
from geomonitor.glue.nnls.solve import FeatureSpace, solve
from tests.glue.clouds import gaussian_clouds, relu_network
from tests.glue.test_anchors import CASES, EXACT, dense, scipy_weights, unit_problem


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same functions without numba."""
    monkeypatch.setattr(compiled, "compiled_loops", lambda: loops.solve_directions)


def small_problem() -> tuple[GramProblem, torch.Tensor, torch.Tensor]:
    return unit_problem(*gaussian_clouds(3, 6, 30, 2.0), 4)


def assert_solved(problem: GramProblem, units: torch.Tensor, targets: torch.Tensor) -> None:
    sets = solve_compiled(problem)
    assert bool(sets.converged.all())
    assert bool((sets.pivot > 0).all())
    expected = scipy_weights(problem, units, targets)
    torch.testing.assert_close(dense(sets, len(units)), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.usefixtures("interpreted")
class TestInterpreted:
    def test_agrees_with_scipy(self) -> None:
        assert_solved(*small_problem())

    def test_careful_steps_alone_reach_the_solution(self, monkeypatch: pytest.MonkeyPatch) -> None:
        add, drop, seen = loops._add_worst, loops._drop_until_positive, []

        def careful_add(*args: Any) -> int:
            seen.append(args)
            return add(*args[:4], len(args[3]), *args[5:])

        monkeypatch.setattr(loops, "_add_worst", careful_add)
        monkeypatch.setattr(loops, "_drop_until_positive", lambda *args: drop(*args[:-1], True))  # type: ignore[arg-type]
        assert_solved(*small_problem())
        assert len(seen) > 4 * 4  # one column a round

    def test_dependent_columns_are_left_to_the_fallback(self) -> None:
        problem, units, targets = small_problem()
        twice = GramProblem(
            problem.gram.repeat(1, 2, 2),
            problem.products.repeat(1, 2),
            problem.signs.repeat(1, 2),
            problem.group,
            problem.segment,
        )
        sets = solve_compiled(twice)
        assert not bool(sets.converged.all())
        assert bool((sets.pivot[~sets.converged] == -1).all())
        assert bool((sets.columns[~sets.converged] == -1).all())

    def test_too_many_active_columns_are_left_to_the_fallback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem, units, targets = small_problem()
        monkeypatch.setattr(compiled, "MOST_ACTIVE", 2)
        assert not bool(solve_compiled(problem).converged.any())
        found = solve(problem, FeatureSpace(lambda group: units, lambda row: targets[row]))
        assert bool(found.converged.all())
        expected = scipy_weights(problem, units, targets)
        torch.testing.assert_close(dense(found.sets, len(units)), expected, rtol=EXACT, atol=EXACT)

    def test_what_is_left_comes_back_in_its_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem, units, targets = small_problem()

        def without_two(problem: GramProblem) -> ActiveSets:
            sets = solve_compiled(problem)
            gone = torch.tensor([1, 2])
            sets.columns[gone], sets.weights[gone], sets.converged[gone], sets.pivot[gone] = -1, 0.0, False, -1.0
            return sets

        monkeypatch.setattr(solve_module, "solve_compiled", without_two)
        found = solve(problem, FeatureSpace(lambda group: units, lambda row: targets[row]))
        assert bool(found.converged.all())
        expected = scipy_weights(problem, units, targets)
        torch.testing.assert_close(dense(found.sets, len(units)), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("case", CASES)
def test_compiled_loops_agree_with_scipy(case: str) -> None:
    pytest.importorskip("numba")
    assert_solved(*unit_problem(*CASES[case](), 30))


@pytest.mark.parametrize("mode", ["joint", "pairwise"])
def test_numba_changes_speed_only(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    features, labels = relu_network(5, 20, 48, 60)
    with_numba = manifold_geometry(features, labels, directions=40, mode=mode)  # type: ignore[arg-type]
    monkeypatch.setattr(solve_module, "suits", lambda problem: False)
    without = manifold_geometry(features, labels, directions=40, mode=mode)  # type: ignore[arg-type]
    # Solutions agree to 1e-10; the errors are square roots of sums of squares of small differences.
    for one, other in ((with_numba.measures, without.measures), (with_numba.standard_error, without.standard_error)):
        torch.testing.assert_close(torch.stack(one), torch.stack(other), rtol=1e-9, atol=1e-12)


class TestNumbaCannotBeUsed:
    """Not installed: silently the batched solver. Installed and broken: the same, with one warning."""

    @pytest.fixture(autouse=True)
    def fresh(self) -> Iterator[None]:
        compiled.compiled_loops.cache_clear()
        yield
        compiled.compiled_loops.cache_clear()

    def assert_batched(self) -> None:
        problem, units, targets = small_problem()
        assert not suits(problem)
        found = solve(problem, FeatureSpace(lambda group: units, lambda row: targets[row]))
        expected = scipy_weights(problem, units, targets)
        torch.testing.assert_close(dense(found.sets, len(units)), expected, rtol=EXACT, atol=EXACT)

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "find_spec", lambda name: None)
        self.assert_batched()

    @pytest.mark.parametrize("error", [ImportError("Numba needs NumPy 2.2 or less"), AttributeError("no such dtype")])
    def test_fails_on_import(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.installed(monkeypatch)
        monkeypatch.setattr(compiled, "_compile", raising(error))
        with pytest.warns(GeomonitorWarning, match=str(error)) as caught:
            self.assert_batched()
            self.assert_batched()
        assert len(caught) == 1

    def test_fails_when_it_compiles(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installed(monkeypatch)
        monkeypatch.setattr(compiled, "_compile", lambda: raising(RuntimeError("no LLVM")))
        with pytest.warns(GeomonitorWarning, match="no LLVM") as caught:
            self.assert_batched()
        assert len(caught) == 1

    def test_a_broken_package_ends_nothing(self, tmp_path: Path) -> None:
        """In a process of its own, as a user has it."""
        (tmp_path / "numba").mkdir()
        (tmp_path / "numba" / "__init__.py").write_text('raise ImportError("Numba needs NumPy 2.2 or less.")')
        code = (
            "import torch, geomonitor as gm\n"
            "for _ in range(2): g = gm.manifold_geometry(torch.randn(80, 10), torch.arange(80) % 4, directions=20)\n"
            "print(bool(g.dimension > 0))"
        )
        path = os.pathsep.join([str(tmp_path), *sys.path])
        done = subprocess.run(
            [sys.executable, "-W", "always", "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "True"
        assert done.stderr.count("numba is installed but cannot be used (ImportError: Numba needs NumPy 2.2") == 1

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "find_spec", lambda name: object())


def raising(error: Exception) -> Callable[..., None]:
    def call(*args: object) -> None:
        raise error

    return call
