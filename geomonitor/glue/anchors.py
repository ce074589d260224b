"""Anchor points: which points of each class hold the separating plane, for many directions at once.

For a direction ``t`` and a dichotomy ``y`` the dual of

    min_v  1/2 ||v - t||^2    subject to   y_mu <z, v>  <= 0   for every point z of every class mu

is a non-negative least-squares problem. The anchor of a class is the mean of its points under the dual weights, and
zero if the class has none.

Source: Chou, Le, Wang, Chung, ICML 2025 (arXiv:2503.18114), Algorithm 2. It solves the primal problem; the dual solved
here gives the weights exactly, with exact zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.glue.nnls.gram_problem import ActiveSets, GramProblem
from geomonitor.glue.nnls.solve import FeatureSpace, solve


class Anchors(NamedTuple):
    """Anchors as sparse combinations ``sum_j share_j u_j`` of columns of length one."""

    columns: Tensor  # (B, n), int64, -1 where unused
    shares: Tensor  # (B, n), share in the class's dual mass times the point's norm; 0 where unused
    squared_projection: Tensor  # (B,), of the target as given on the cone of the points; the scalar a without a ridge
    residual: Tensor  # (B,), largest violation of the KKT conditions, for columns and target of length one
    converged: Tensor  # (B,), bool


def solve_anchors(
    problem: GramProblem, norms: Tensor, class_of: Tensor, lengths: Tensor, space: FeatureSpace
) -> Anchors:
    """Anchors of a batch of directions.

    Args:
        problem: ``B`` directions with columns and targets of length one.
        norms: ``(G, C)``, norms of the columns' points.
        class_of: ``(G, C)``, int64, class of each column.
        lengths: ``(B,)``, norms of the directions.
        space: the same in feature space.
    """
    sets, residual, converged = solve(problem, space)
    projection = (sets.weights * problem.products.gather(1, sets.columns.clamp(min=0))).sum(dim=1)
    shares = _shares(problem, sets, norms, class_of)
    return Anchors(sets.columns, shares, projection * lengths.square(), residual, converged)


def _shares(problem: GramProblem, sets: ActiveSets, norms: Tensor, class_of: Tensor) -> Tensor:
    """Dual weights of points from those of unit columns, divided by their sum in each class, as parts of columns."""
    used = sets.columns.clamp(min=0)
    point_norms = norms[problem.group].gather(1, used)
    classes = class_of[problem.group].gather(1, used)
    weights = sets.weights / point_norms.clamp(min=torch.finfo(norms.dtype).tiny)
    mass = weights.new_zeros(len(weights), int(class_of.max()) + 1).scatter_add_(1, classes, weights)
    class_mass = mass.gather(1, classes)
    return torch.where(weights > 0, weights / class_mass, 0.0) * point_norms
