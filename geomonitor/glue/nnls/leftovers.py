"""The samples that a batch could not finish, one by one, in feature space."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls  # type: ignore[import-untyped]
from torch import Tensor

from geomonitor.glue.nnls.active_set import ActiveSets
from geomonitor.glue.nnls.gram_problem import GramProblem
from geomonitor.glue.nnls.saturated import saturated_weights
from geomonitor.glue.nnls.smallest_weights import Array

# SciPy's own cap is three times the number of columns; a saturated sample with many exchanges may need more.
ITERATIONS_PER_COLUMN = 10

# Of so few numbers SciPy's compiled loop is done before Newton's method has begun.
SMALL = 1 << 16
# A sample that violates a constraint by more than a well-posed problem leaves, for columns and target of length one,
# is solved again by a method that converges.
RETRIED_RESIDUAL = 1e-11

Coordinates = Callable[[int], tuple[Tensor, Tensor]]
"""From a row of the batch to its columns ``(C, N)`` and its target ``(N,)``, both of length one."""
SparseWeights = tuple[NDArray[np.int64], Array]
"""Columns and their weights."""


def finish(problem: GramProblem, sets: ActiveSets, rows: Tensor, coordinates: Coordinates) -> tuple[ActiveSets, Tensor]:
    """Solves some rows again, one by one: by Newton's method, and by SciPy's `nnls` where that gives no exact
    answer; the other way round where a row is small.

    Args:
        problem: the whole batch.
        sets: its solutions so far.
        rows: rows to solve.
        coordinates: where the Gram matrices came from.

    Returns:
        the solutions, with those rows replaced; where SciPy gives up too, ``converged`` stays False. And a
        mask ``(B,)`` of rows whose weights are known to be the smallest of all optimal ones.
    """
    found, settled = {}, torch.zeros_like(sets.converged)
    for row in rows.tolist():
        signed, target = _reduced(*coordinates(row), problem.signs[row])
        weights, settled[row] = _solution(signed, target)
        if weights is not None:
            found[row] = np.arange(len(weights)), weights
    converged = sets.converged.clone()
    converged[rows] = False
    converged[list(found)] = True
    return replace_rows(sets, found)._replace(converged=converged), settled


def replace_rows(sets: ActiveSets, found: Mapping[int, SparseWeights]) -> ActiveSets:
    """Copies of the sets, wider where needed, with some rows replaced by the positive ones of other
    weights.
    """
    positive = {row: (columns[values > 0], values[values > 0]) for row, (columns, values) in found.items()}
    width = max([sets.columns.shape[1], *(len(columns) for columns, _ in positive.values())])
    extra = (0, width - sets.columns.shape[1])
    columns = torch.nn.functional.pad(sets.columns, extra, value=-1)
    weights = torch.nn.functional.pad(sets.weights, extra)
    for row, (active, values) in positive.items():
        columns[row], weights[row] = -1, 0.0
        columns[row, : len(active)] = torch.from_numpy(active).to(columns.device)
        weights[row, : len(active)] = torch.from_numpy(values).to(weights.device)
    return ActiveSets(columns, weights, sets.converged)


def put_rows(sets: ActiveSets, rows: Tensor, part: ActiveSets) -> ActiveSets:
    """Copies of the sets, wider where needed, with some rows replaced by those of other sets."""
    width = max(sets.columns.shape[1], part.columns.shape[1])

    def put(whole: Tensor, own: Tensor, value: float) -> Tensor:
        whole, own = (torch.nn.functional.pad(t, (0, width - t.shape[1]), value=value) for t in (whole, own))
        return whole.index_copy(0, rows, own)

    columns, weights = put(sets.columns, part.columns, -1), put(sets.weights, part.weights, 0.0)
    return ActiveSets(columns, weights, sets.converged.index_copy(0, rows, part.converged))


def _reduced(units: Tensor, target: Tensor, signs: Tensor) -> tuple[Array, Array]:
    """Signed columns ``(min(N, C), C)`` and target: of many dimensions the triangular factor says the
    same.
    """
    signed, right = (units * signs[:, None]).cpu().numpy().T, target.cpu().numpy()
    if signed.shape[0] > signed.shape[1]:
        orthogonal, signed = np.linalg.qr(signed)
        right = orthogonal.T @ right
    return signed, right


def _solution(signed: Array, target: Array) -> tuple[Array | None, bool]:
    """Weights, None where both methods give up, and whether they are known to be the smallest."""
    by_scipy = _by_scipy(signed, target) if signed.size <= SMALL else None
    if by_scipy is not None and _is_exact(signed, target, by_scipy):
        return by_scipy, False
    by_newton = saturated_weights(signed, target)
    if by_newton is not None:
        return by_newton
    return by_scipy if by_scipy is not None else _by_scipy(signed, target), False


def _is_exact(signed: Array, target: Array, weights: Array) -> bool:
    gradient = (target - signed @ weights) @ signed
    return bool(np.max(np.where(weights > 0, np.abs(gradient), gradient), initial=0.0) <= RETRIED_RESIDUAL)


def _by_scipy(signed: Array, target: Array) -> Array | None:
    try:
        weights, _ = nnls(np.ascontiguousarray(signed), target, maxiter=ITERATIONS_PER_COLUMN * signed.shape[1])
    except RuntimeError:  # SciPy's word for too many iterations
        return None
    return np.asarray(weights, dtype=np.float64)
