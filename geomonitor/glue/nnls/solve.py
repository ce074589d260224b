"""The entry to the solvers: which one is taken when.

| step | taken if | algorithm | why |
|---|---|---|---|
| 1 | on the CPU, and numba can be used | `block_pivoting_compiled` | direction by direction, factors changed in place |
| 1 | otherwise | `block_pivoting` | batched operations; also on a GPU |
| 1b | with a ridge, many take many rounds | `alternating_directions` | a guess, from which step 1 starts again |
| 2 | a direction of a small problem is not exact | `lawson_hanson` | SciPy is done before Newton's method has begun |
| 2 | the same of a large one, or with a ridge | `semismooth_newton` | its cost does not grow with the active set |
| 3 | weights are not unique (only without a ridge) | `minimal_norm` | one answer, whatever the order of the points |

Step 2 is for directions with nearly dependent or very many active columns. If its first method finds no exact answer,
the other one is tried. All agree to rounding if weights are unique.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomonitor.glue.nnls.alternating_directions import guess
from geomonitor.glue.nnls.block_pivoting import ROUNDING_PER_MASS, VIOLATION, solve_batch
from geomonitor.glue.nnls.block_pivoting_compiled import solve_compiled, suits
from geomonitor.glue.nnls.gram_problem import ActiveSets, GramProblem, kkt_residual, signed_gradient
from geomonitor.glue.nnls.lawson_hanson import Array, lawson_hanson
from geomonitor.glue.nnls.minimal_norm import DEPENDENT, are_dependent, minimal_norm
from geomonitor.glue.nnls.semismooth_newton import semismooth_newton

# Ordinary directions take 5 to 20 rounds. With a ridge, those that take more have many active columns.
ROUNDS_BEFORE_GUESS = 30
# A guess needs an inverse of the whole Gram matrix: for fewer directions it takes longer than the rounds it saves.
WORTH_A_GUESS = 8
# A problem is small if its columns hold at most this many numbers.
SMALL = 1 << 16
# Unit columns and targets of a well-posed problem leave a smaller violation; a direction with more is solved again.
RETRIED_RESIDUAL = 1e-11
# A direction counts as solved only if no constraint is violated by more than this, for unit columns and target.
LARGEST_RESIDUAL = 1e-8
# Features of low rank that were rounded to float32 are dependent up to 1e-7, which a Gram matrix in float64 cannot see
# (1e-14). The smallest weights then solve the problem of the features before they were rounded.
ROUNDED_RESIDUAL = 1e-6


class FeatureSpace(NamedTuple):
    """Columns and targets behind the Gram matrices, for directions that are solved in feature space."""

    columns: Callable[[int], Tensor]  # of a group, (C, N), of length one or zero
    target: Callable[[int], Tensor]  # of a row of the batch, (N,), of length one


class Solution(NamedTuple):
    """Dual weights of a batch."""

    sets: ActiveSets
    residual: Tensor  # (B,), largest violation of the KKT conditions, for columns and target of length one
    converged: Tensor  # (B,), bool


def solve(problem: GramProblem, space: FeatureSpace) -> Solution:
    """Non-negative least squares for a batch of directions, by the table of this module.

    Args:
        problem: the batch.
        space: the same in feature space.

    >>> problem = GramProblem(torch.eye(2).double()[None], torch.tensor([[0.6, -0.8]]).double(),
    ...                       torch.ones(1, 2).double(), torch.tensor([0]), 1)
    >>> solve(problem, FeatureSpace(lambda group: torch.eye(2), lambda row: torch.tensor([0.6, -0.8]))).sets.weights
    tensor([[0.6000]], dtype=torch.float64)
    """
    sets = _pivoted(problem)
    gradient = signed_gradient(problem, sets.columns, sets.weights)
    settled = torch.zeros_like(sets.converged)
    # Dependent columns in an active set (features of low rank) leave a residual that no refinement removes.
    open_ = ~sets.converged | (kkt_residual(gradient, sets) > RETRIED_RESIDUAL)
    if bool(open_.any()):
        sets, settled = _one_by_one(problem, sets, open_.nonzero()[:, 0], space)
        gradient = signed_gradient(problem, sets.columns, sets.weights)
    residual = kkt_residual(gradient, sets)
    good = residual <= LARGEST_RESIDUAL
    if not problem.ridge:
        sets, residual, good = _with_unique_weights(problem, Solution(sets, residual, good), gradient, settled)
    return Solution(sets, residual, sets.converged & good)


def _pivoted(problem: GramProblem) -> ActiveSets:
    """By block pivoting; with a ridge, directions that take many rounds start again from a guess."""
    pivoting = solve_compiled if suits(problem) else solve_batch
    if not problem.ridge:
        return pivoting(problem)
    sets = pivoting(problem, rounds=ROUNDS_BEFORE_GUESS)
    rows = (~sets.converged).nonzero()[:, 0]
    if not len(rows):
        return sets
    start = guess(problem.select(rows)) if len(problem.gram) == 1 and len(rows) >= WORTH_A_GUESS else None
    return sets.with_rows(rows, pivoting(problem.select(rows), start))


def _one_by_one(problem: GramProblem, sets: ActiveSets, rows: Tensor, space: FeatureSpace) -> tuple[ActiveSets, Tensor]:
    """The sets with some rows solved again, and a mask ``(B,)`` of rows whose weights are known to be the smallest."""
    settled, found = torch.zeros_like(sets.converged), []
    for group in sorted(set(problem.group[rows].tolist())):
        columns = space.columns(group).cpu().numpy().T
        orthogonal, columns = np.linalg.qr(columns) if columns.shape[0] > columns.shape[1] else (None, columns)
        for row in rows[problem.group[rows] == group].tolist():
            target = space.target(row).cpu().numpy()
            target = target if orthogonal is None else orthogonal.T @ target
            weights, settled[row] = _first_exact(columns * problem.signs[row].cpu().numpy(), target, problem.ridge)
            found.append(weights)
    dense = torch.from_numpy(np.stack(found)).to(problem.products)
    solved = dense.isfinite().all(dim=1)
    return sets.with_rows(rows, ActiveSets.of_dense(torch.where(solved[:, None], dense, 0.0), solved)), settled


def _first_exact(signed: Array, target: Array, ridge: float) -> tuple[Array, bool]:
    """Weights, NaN if no method finds any, and whether they are known to be the smallest."""

    def newton() -> tuple[Array, bool] | None:
        return semismooth_newton(signed, target, ridge)

    def scipy() -> tuple[Array, bool] | None:
        weights = lawson_hanson(signed, target, ridge)
        return None if weights is None else (weights, False)

    last = np.full(signed.shape[1], np.nan), False
    for method in (scipy, newton) if signed.size <= SMALL and not ridge else (newton, scipy):
        found = method()
        if found is not None:
            gradient = (target - signed @ found[0]) @ signed - ridge * found[0]
            violation = np.max(np.where(found[0] > 0, np.abs(gradient), gradient), initial=0.0)
            if violation <= RETRIED_RESIDUAL:
                return found
            last = found
    return last


def _with_unique_weights(problem: GramProblem, found: Solution, gradient: Tensor, settled: Tensor) -> Solution:
    """Replaces weights that are not unique, which takes dependent columns, active ones or others of zero gradient.

    Args:
        problem: the batch.
        found: its solutions.
        gradient: at these solutions.
        settled: ``(B,)``, weights are the smallest already.
    """
    sets = found.sets
    present = problem.gram.diagonal(dim1=1, dim2=2)[problem.group] > 0
    dense = sets.dense(gradient.shape[1])
    tolerance = (ROUNDING_PER_MASS * sets.weights.sum(dim=1)).clamp(min=VIOLATION)
    optimal = present & (gradient > -tolerance[:, None])  # these can carry weight without loss
    singular = sets.pivot < DEPENDENT
    suspects = (((optimal & (dense == 0)).any(dim=1) | singular) & ~settled).nonzero()[:, 0]
    rows = []
    for row in suspects.tolist():  # rare, and of many sizes
        columns = optimal[row].nonzero()[:, 0]
        signs = problem.signs[row, columns]
        gram = (problem.gram[problem.group[row]][columns][:, columns] * signs[:, None] * signs).cpu().numpy()
        if are_dependent(gram):
            smallest = minimal_norm(gram, dense[row, columns].cpu().numpy())
            dense[row] = torch.zeros_like(dense[row]).index_copy(0, columns, torch.from_numpy(smallest).to(dense))
            rows.append(row)
    if not rows:
        return found
    own = torch.tensor(rows, device=dense.device)
    smaller = sets.with_rows(own, ActiveSets.of_dense(dense[own], sets.converged[own]))
    residual = kkt_residual(signed_gradient(problem, smaller.columns, smaller.weights), smaller)
    own = own[residual[own] <= ROUNDED_RESIDUAL]
    kept = torch.zeros_like(sets.converged).index_fill(0, own, True)
    residual = torch.where(kept, residual, found.residual)
    return Solution(sets.with_rows(own, smaller.select(own)), residual, found.converged | kept)
