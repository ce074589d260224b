"""The loops of `exchange`, compiled by numba where it is installed: a tenth of the time of the batches on a CPU.

numba is optional (``pip install "geomonitor[fast]"``). The first measurement on a machine compiles for some seconds;
the result is kept beside the source, or where numba keeps such files if that folder is read-only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from geomonitor.glue.nnls import exchange
from geomonitor.glue.nnls.active_set import (
    LEAST_PROGRESS,
    ROUNDING_PER_MASS,
    ROUNDS,
    VIOLATION,
    ActiveSets,
    most_active,
)
from geomonitor.glue.nnls.gram_problem import GramProblem

# A factor of this size takes 8 MiB; larger active sets were not seen.
MOST_ACTIVE = 1024
# Nearly dependent columns go to the batched solver, which is made for them.
LEAST_PIVOT = 1e-9
# As in `anchors`: two steps leave nothing of the rounding in the factor.
REFINEMENTS = 2


def suits(problem: GramProblem) -> bool:
    """Whether the compiled loops can and should solve this."""
    return problem.products.device.type == "cpu" and _installed()


@cache
def _installed() -> bool:
    return find_spec("numba") is not None


def solve_compiled(problem: GramProblem) -> tuple[ActiveSets, Tensor]:
    """Solves what it can; the rest comes back as not converged.

    Returns:
        the refined solutions, and the smallest pivot of each sample, ``(B,)``.
    """
    batch, size = problem.products.shape
    most = int(min(size, MOST_ACTIVE, most_active(problem)))
    columns = torch.full((batch, most), -1)
    weights = torch.zeros(columns.shape, dtype=torch.float64)
    pivots = torch.full((batch,), -1.0, dtype=torch.float64)
    limits = exchange.Limits(
        ROUNDS, VIOLATION, ROUNDING_PER_MASS, LEAST_PROGRESS, least_pivot=LEAST_PIVOT, refinements=REFINEMENTS
    )
    given = (tensor.contiguous().numpy() for tensor in (problem.gram, problem.group, problem.products, problem.signs))
    results = exchange.Results(columns.numpy(), weights.numpy(), pivots.numpy())
    _loops()(*given, problem.segment, limits, results)
    width = max(1, int((columns >= 0).sum(dim=1).amax()) if batch else 1)
    return ActiveSets(columns[:, :width].contiguous(), weights[:, :width].contiguous(), pivots >= 0), pivots


@cache
def _loops() -> Callable[..., None]:
    import numba
    from numba.extending import register_jitable

    options: dict[str, Any] = {"fastmath": {"reassoc", "contract"}, "error_model": "numpy"}
    for helper in (
        exchange._copy,
        exchange._gradient,
        exchange._empty,
        exchange._append,
        exchange._add_worst,
        exchange._back_substitute,
        exchange._remove,
        exchange._drop_until_positive,
        exchange._refine,
        exchange._solve_sample,
    ):
        register_jitable(**options)(helper)
    compiled: Callable[..., None]
    try:
        compiled = numba.njit(cache=True, nogil=True, **options)(exchange.solve_samples)
    except RuntimeError:  # no folder to keep the result in
        compiled = numba.njit(nogil=True, **options)(exchange.solve_samples)
    return compiled
