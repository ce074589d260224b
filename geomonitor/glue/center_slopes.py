"""How sums over directions change when the mean anchors move: derivatives in closed form.

``b``, ``c`` and the alignments depend on a direction's own anchors ``S`` and, through the mean anchors ``S0``, on every
other direction. Standard errors need the derivatives of the sums by ``S0``. All of them have the form

    X^T S + (Y + Y^T) S0 - v t^T

with ``X``, ``Y`` of shape ``(P, P)`` and ``v`` of shape ``(P,)`` per direction, so that they cost one product with the
Gram matrix for all six fields together; backward passes would take one each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.glue.anchors import Anchors
from geomonitor.glue.centers import Centers, Segments
from geomonitor.glue.nnls.gram_problem import GramProblem


class Slopes(NamedTuple):
    """Derivatives of ``K`` fields by ``<s_mu, s0_nu>``, by ``<s0_mu, s0_nu>`` and by ``-<s0_nu, t>``, per direction."""

    crossed: Tensor  # X, (K, B, P, P)
    centers: Tensor  # Y, (K, B, P, P)
    products: Tensor | None = None  # v, (K, B, P), for directions of length one; None: no dependence


def projection_slopes(coefficients: Tensor, lengths: Tensor) -> Slopes:
    """Of squared projections ``v^T G^+ v`` with ``v = S1 t`` and ``x = G^+ v``: ``2 x dv - x^T dG x``.

    Args:
        coefficients: ``x``, ``(2, B, P)``, for ``G = S1 S1^T`` and for ``G = S1 S1^T + S0 S0^T``.
        lengths: ``(B,)``, of the directions.
    """
    outer = coefficients[..., :, None] * coefficients[..., None, :]
    grams = coefficients.new_tensor([1.0, 2.0])[:, None, None, None]  # of the two, how many move with S0
    return Slopes(2 * outer, -grams * outer, 2 * coefficients * lengths[:, None])


def axis_slopes(by_products: Tensor, by_left: Tensor, by_right: Tensor) -> Slopes:
    """Of a sum over products of axes ``S1 S1^T``, symmetric."""
    by_axes = by_products + torch.diag_embed(by_left + by_right)
    return Slopes(-2 * by_axes, by_axes)


def center_axis_slopes(by_products: Tensor, by_centers: Tensor, by_axes: Tensor) -> Slopes:
    """Of a sum over products ``S0 S1^T``."""
    return Slopes(by_products.mT - 2 * torch.diag_embed(by_axes), torch.diag_embed(by_centers + by_axes) - by_products)


def total_slopes(
    slopes: Iterable[Slopes], problem: GramProblem, segments: Segments, anchors: Anchors, mean: Centers
) -> Tensor:
    """Derivatives by mean shares of sums over the converged directions, ``(fields, G, C)``.

    Args:
        slopes: of each field.
        problem: ``G`` groups of equally many directions.
        segments: of the columns.
        anchors: of the directions.
        mean: the mean anchors.
    """
    groups, size = mean.shares.shape
    length, class_of = segments.length, segments.class_of
    left_out = ~anchors.converged
    shares = torch.zeros_like(problem.products)
    shares.scatter_add_(1, anchors.columns.clamp(min=0), anchors.shares.masked_fill(left_out[:, None], 0.0))

    def by_segment(samples: Tensor) -> Tensor:
        """``(B, C)`` to ``(G S, length, B / G)``."""
        return samples.view(groups, -1, len(class_of), length).permute(0, 2, 3, 1).flatten(0, 1)

    own = by_segment(shares)
    directions = by_segment(problem.products * problem.signs)
    through_samples, found = [], []
    for fields in slopes:
        count = len(fields.crossed)
        crossed = fields.crossed.masked_fill(left_out[:, None, None], 0.0)
        crossed = crossed[:, :, class_of] if len(class_of) > segments.classes else crossed
        crossed = crossed.view(count, groups, -1, len(class_of), segments.classes).permute(1, 3, 2, 0, 4)
        weighted = torch.bmm(own, crossed.flatten(3).flatten(0, 1))  # sum_B share_j X[class_j, nu]
        through_samples.append(weighted.view(groups, size, count, segments.classes))
        both = fields.centers.masked_fill(left_out[:, None, None], 0.0)
        both = both.view(count, groups, -1, *both.shape[2:]).sum(dim=2)
        both = (both + both.mT)[..., class_of].permute(1, 3, 2, 0).flatten(0, 1)  # (G S, P, K)
        near = torch.bmm(mean.products.view(-1, length, segments.classes), both)
        if fields.products is not None:
            pull = fields.products.masked_fill(left_out[:, None], 0.0)[..., class_of]
            pull = pull.view(count, groups, -1, len(class_of)).permute(1, 3, 2, 0).flatten(0, 1)
            near = near - torch.bmm(directions, pull)
        found.append(near.view(groups, size, count))
    weights = torch.cat(through_samples, dim=2)[..., class_of].permute(0, 3, 1, 2).flatten(0, 1)  # (G S, C, fields)
    through_gram = torch.bmm(problem.gram.view(-1, length, size), weights)  # a class's columns with its own weights
    return (torch.cat(found, dim=2) + through_gram.view(groups, size, -1)).permute(2, 0, 1)
