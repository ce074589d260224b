"""The loops of `block_pivoting_loops`, compiled by numba if it is installed: a tenth of the time of the batches.

numba is optional (``pip install "geomonitor[fast]"``). The first measurement on a machine compiles for some seconds;
the result is kept beside the source, or in numba's cache folder if that one is read-only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from geomonitor.errors import GeomonitorWarning
from geomonitor.glue.nnls import block_pivoting_loops as loops
from geomonitor.glue.nnls.block_pivoting import (
    LEAST_PROGRESS,
    REFINEMENTS,
    ROUNDING_PER_MASS,
    ROUNDS,
    SHARE,
    VIOLATION,
    most_active,
)
from geomonitor.glue.nnls.gram_problem import ActiveSets, GramProblem

# A factor of this size takes 8 MiB; larger active sets were not seen.
MOST_ACTIVE = 1024
# The factor is changed in place, and so costs little up to as many active columns as dimensions; with a ridge more can
# be active, and take less time than by any other method.
SATURATED_SHARE = 1.0
# Nearly dependent columns go to another method.
LEAST_PIVOT = 1e-9


def suits(problem: GramProblem) -> bool:
    """Whether the compiled loops can solve this: on the CPU, and numba can be used."""
    return problem.products.device.type == "cpu" and compiled_loops() is not None


def solve_compiled(problem: GramProblem, start: Tensor | None = None, *, rounds: int = ROUNDS) -> ActiveSets:
    """Solves what it can; the rest comes back as not converged, without columns.

    Args:
        problem: the batch.
        start: ``(B, n)``, columns of a guess, -1 where unused; None: no column.
        rounds: cap of each direction.
    """
    function = compiled_loops()
    if function is None:
        raise RuntimeError("numba is needed: ask `suits` first.")
    return _solve_with(function, problem, start, rounds)


@cache
def compiled_loops() -> Callable[..., None] | None:
    """The compiled function; None if numba is not installed, or fails, of which one warning is given."""
    if find_spec("numba") is None:
        return None
    try:
        function = _compile()
        one = torch.ones(1, 1, dtype=torch.float64)
        _solve_with(function, GramProblem(one[None], one, one, torch.zeros(1, dtype=torch.int64), 1))
    except Exception as error:  # noqa: BLE001 - numba is optional: whatever it raises must not end a run
        warnings.warn(
            f"numba is installed but cannot be used ({type(error).__name__}: {error}). The manifold geometry is "
            "computed without it, with the same results in 2 to 5 times the time. Install a numba that fits the "
            "installed NumPy, or uninstall numba.",
            GeomonitorWarning,
            stacklevel=2,
        )
        return None
    return function


def _compile() -> Callable[..., None]:
    import numba
    from numba.extending import register_jitable

    options: dict[str, Any] = {"fastmath": {"reassoc", "contract"}, "error_model": "numpy"}
    for helper in (
        loops._copy,
        loops._gradient,
        loops._empty,
        loops._append,
        loops._add_worst,
        loops._back_substitute,
        loops._remove,
        loops._drop_until_positive,
        loops._refine,
        loops._start,
        loops._solve_direction,
    ):
        register_jitable(**options)(helper)
    function: Callable[..., None]
    try:
        function = numba.njit(cache=True, nogil=True, **options)(loops.solve_directions)
    except RuntimeError:  # no folder to keep the result in
        function = numba.njit(nogil=True, **options)(loops.solve_directions)
    return function


def _solve_with(
    function: Callable[..., None], problem: GramProblem, start: Tensor | None = None, rounds: int = ROUNDS
) -> ActiveSets:
    batch, size = problem.products.shape
    limit = MOST_ACTIVE if problem.ridge else most_active(problem, SATURATED_SHARE)
    most = int(min(size, MOST_ACTIVE, limit))
    columns = torch.full((batch, most), -1)
    if start is not None:
        columns[:, : start.shape[1]] = start[:, :most]
    weights = torch.zeros(columns.shape, dtype=torch.float64)
    pivots = torch.full((batch,), -1.0, dtype=torch.float64)
    limits = loops.Limits(
        rounds, VIOLATION, ROUNDING_PER_MASS, LEAST_PROGRESS, SHARE, least_pivot=LEAST_PIVOT, refinements=REFINEMENTS
    )
    gram, *given = (
        tensor.contiguous().numpy() for tensor in (problem.gram, problem.group, problem.products, problem.signs)
    )
    results = loops.Results(columns.numpy(), weights.numpy(), pivots.numpy())
    function(gram, float(problem.ridge), *given, problem.segment, limits, results)
    columns[pivots < 0] = -1
    width = max(1, int((columns >= 0).sum(dim=1).amax()) if batch else 1)
    return ActiveSets(columns[:, :width].contiguous(), weights[:, :width].contiguous(), pivots >= 0, pivots)
