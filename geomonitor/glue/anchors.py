"""Anchor points: which points of each class hold the separating plane, for many directions at once.

For a direction ``t`` and a dichotomy ``y`` the dual of

    min_v  1/2 ||v - t||^2    subject to   y_mu <z, v>  <= 0   for every point z of every class mu

is a non-negative least-squares problem. The anchor of a class is the mean of its points under the dual
weights, and zero where the class has none.

Source: Chou, Le, Wang, Chung, ICML 2025 (arXiv:2503.18114), Algorithm 2. It solves the primal problem; the
    dual solved
here gives the weights exactly, with exact zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.glue.nnls.active_set import ROUNDING_PER_MASS, VIOLATION, ActiveSets, solve
from geomonitor.glue.nnls.compiled import solve_compiled, suits
from geomonitor.glue.nnls.gram_problem import GramProblem, signed_gradient, solve_on
from geomonitor.glue.nnls.leftovers import RETRIED_RESIDUAL, SMALL, Coordinates, finish, put_rows, replace_rows
from geomonitor.glue.nnls.smallest_weights import DEPENDENT, are_dependent, smallest_weights

# Two steps divide what JITTER (1e-13) changed twice by 1e6 even if a column is within 1e-3 of the others'
# span.
REFINEMENTS = 2
# A sample counts as solved only if no constraint is violated by more than this, for unit columns and target.
LARGEST_RESIDUAL = 1e-8
# Features of low rank that were rounded to float32 are dependent up to 1e-7, which a Gram matrix in float64 cannot
# see (1e-14). The smallest weights then solve the problem of the features before they were rounded.
ROUNDED_RESIDUAL = 1e-6


class Anchors(NamedTuple):
    """Anchors as sparse combinations ``sum_j share_j u_j`` of columns of length one."""

    columns: Tensor  # (B, n), int64, -1 where unused
    shares: Tensor  # (B, n), share in the class's dual mass times the point's norm; 0 where unused
    squared_projection: Tensor  # (B,), the scalar a, for the target as given
    residual: Tensor  # (B,), largest violation of the KKT conditions, for columns and target of length one
    converged: Tensor  # (B,), bool


def solve_anchors(
    problem: GramProblem, norms: Tensor, class_of: Tensor, lengths: Tensor, coordinates: Coordinates
) -> Anchors:
    """Anchors of a batch of samples.

    Args:
        problem: ``B`` samples with columns and targets of length one.
        norms: ``(G, C)``, norms of the columns' points.
        class_of: ``(G, C)``, int64, class of each column.
        lengths: ``(B,)``, norms of the directions.
        coordinates: columns and target of a row, for samples that do not converge in Gram space.
    """
    sets, pivot = _solved(problem)
    gradient = signed_gradient(problem, sets.columns, sets.weights)
    settled = torch.zeros_like(sets.converged)
    # Dependent columns in an active set (features of low rank) leave a residual that no refinement removes.
    left = (~sets.converged | (_residual(gradient, sets) > RETRIED_RESIDUAL)).nonzero()[:, 0]
    if len(left):
        sets, settled = finish(problem, sets, left, coordinates)
        gradient = signed_gradient(problem, sets.columns, sets.weights)
    singular = pivot < DEPENDENT
    sets, residual, optimal = _with_unique_weights(problem, sets, gradient, singular=singular, settled=settled)
    projection = _squared_projection(problem, sets)
    converged = sets.converged & optimal
    shares = _shares(problem, sets, norms, class_of)
    return Anchors(sets.columns, shares, projection * lengths.square(), residual, converged)


def _solved(problem: GramProblem) -> tuple[ActiveSets, Tensor]:
    """Refined solutions and the smallest pivot of each sample: compiled, and in a batch what that leaves.

    Of a small problem nothing is left to the batch, for one by one the samples take less time.
    """
    if not suits(problem):
        return _refined(problem, solve(problem))
    sets, pivot = solve_compiled(problem)
    left = (~sets.converged).nonzero()[:, 0]
    if not len(left) or _is_small(problem):
        return sets, pivot
    part = problem.select(left)
    rest, rest_pivot = _refined(part, solve(part))
    return put_rows(sets, left, rest), pivot.index_copy(0, left, rest_pivot)


def _is_small(problem: GramProblem) -> bool:
    return problem.units is not None and problem.units.numel() <= SMALL


def _refined(problem: GramProblem, sets: ActiveSets) -> tuple[ActiveSets, Tensor]:
    """The weights to full accuracy, and the smallest pivot; what rounding makes negative is zero."""
    solution, _, _, pivot = solve_on(problem, sets.columns, refinements=REFINEMENTS)
    good = solution.isfinite().all(dim=1, keepdim=True)
    return sets._replace(weights=torch.where(good, solution, sets.weights).clamp(min=0)), pivot


def _residual(gradient: Tensor, sets: ActiveSets) -> Tensor:
    """Largest violation: descent directions of all columns, and ascent directions of the active ones."""
    active = torch.where(sets.columns >= 0, gradient.gather(1, sets.columns.clamp(min=0)).abs(), 0.0)
    return torch.maximum(gradient.amax(dim=1), active.amax(dim=1)).clamp(min=0)


def _squared_projection(problem: GramProblem, sets: ActiveSets) -> Tensor:
    return (sets.weights * problem.products.gather(1, sets.columns.clamp(min=0))).sum(dim=1)


def _with_unique_weights(
    problem: GramProblem, sets: ActiveSets, gradient: Tensor, *, singular: Tensor, settled: Tensor
) -> tuple[ActiveSets, Tensor, Tensor]:
    """Replaces weights that are not unique, which takes dependent columns, active ones or others of zero
    gradient.

    Returns:
        the sets, their residuals ``(B,)``, and whether these are small enough, ``(B,)``.

    Args:
        problem: the batch.
        sets: its solutions.
        gradient: at these solutions.
        singular: ``(B,)``, active columns are dependent.
        settled: ``(B,)``, weights are the smallest already.
    """
    present = problem.gram.diagonal(dim1=1, dim2=2)[problem.group] > 0
    dense = torch.zeros_like(gradient).scatter_add_(1, sets.columns.clamp(min=0), sets.weights)
    tolerance = (ROUNDING_PER_MASS * sets.weights.sum(dim=1)).clamp(min=VIOLATION)
    optimal = present & (gradient > -tolerance[:, None])  # these can carry weight without loss
    suspects = (((optimal & (dense == 0)).any(dim=1) | singular) & ~settled).nonzero()[:, 0]
    replaced = {}
    for row in suspects.tolist():  # rare, and of many sizes
        columns = optimal[row].nonzero()[:, 0]
        signs = problem.signs[row, columns]
        gram = problem.gram[problem.group[row]][columns][:, columns] * signs[:, None] * signs
        signed = gram.cpu().numpy()
        if are_dependent(signed):
            replaced[row] = columns.cpu().numpy(), smallest_weights(signed, dense[row, columns].cpu().numpy())
    residual = _residual(gradient, sets)
    if not replaced:
        return sets, residual, residual <= LARGEST_RESIDUAL
    smallest = replace_rows(sets, replaced)
    new_residual = _residual(signed_gradient(problem, smallest.columns, smallest.weights), smallest)
    good = new_residual <= ROUNDED_RESIDUAL
    residual = torch.where(good, new_residual, residual)
    kept = {row: found for row, found in replaced.items() if good[row]}
    return replace_rows(sets, kept), residual, good | (residual <= LARGEST_RESIDUAL)


def _shares(problem: GramProblem, sets: ActiveSets, norms: Tensor, class_of: Tensor) -> Tensor:
    """Dual weights of points from those of unit columns, divided by their sum in each class, as parts of
    columns.
    """
    used = sets.columns.clamp(min=0)
    point_norms = norms[problem.group].gather(1, used)
    classes = class_of[problem.group].gather(1, used)
    weights = sets.weights / point_norms.clamp(min=torch.finfo(norms.dtype).tiny)
    mass = weights.new_zeros(len(weights), int(class_of.max()) + 1).scatter_add_(1, classes, weights)
    class_mass = mass.gather(1, classes)
    return torch.where(weights > 0, weights / class_mass, 0.0) * point_norms
