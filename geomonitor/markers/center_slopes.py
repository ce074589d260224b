"""How sums over samples change when the mean anchors move: derivatives in closed form.

``b``, ``c`` and the alignments depend on a sample's own anchors ``S`` and on the mean anchors ``S0``, and so on every
other sample. Standard errors need the derivatives of the sums by ``S0``. All of them have the form ``X^T S + (Y + Y^T)
S0 - v t^T`` with ``X``, ``Y`` of shape ``(P, P)`` and ``v`` of shape ``(P,)`` per sample, so they cost one product with
the Gram matrix for all six fields together, where backward passes take one each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.markers.active_set import GramProblem
from geomonitor.markers.anchors import Anchors
from geomonitor.markers.centers import Centers, Segments


class Slopes(NamedTuple):
    """Derivatives of one field by ``<s_mu, s0_nu>``, by ``<s0_mu, s0_nu>`` and by ``-<s0_nu, t>``, per sample."""

    crossed: Tensor  # X, (B, P, P)
    centers: Tensor  # Y, (B, P, P)
    products: Tensor | None = None  # v, (B, P), for directions of length one; None: no dependence


def projection_slopes(coefficients: Tensor, lengths: Tensor, *, with_centers: bool) -> Slopes:
    """Of a squared projection ``v^T G^+ v`` with ``v = S1 t`` and ``x = G^+ v``: ``2 x dv - x^T dG x``.

    Args:
        coefficients: ``x``, ``(B, P)``.
        lengths: ``(B,)``, of the directions.
        with_centers: ``G = S1 S1^T + S0 S0^T`` instead of ``S1 S1^T``.
    """
    outer = coefficients[:, :, None] * coefficients[:, None, :]
    return Slopes(2 * outer, -2 * outer if with_centers else -outer, 2 * coefficients * lengths[:, None])


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
    """Derivatives by mean shares of sums over the converged samples, ``(fields, G, C)``.

    Args:
        slopes: of each field.
        problem: ``G`` groups of equally many samples.
        segments: of the columns.
        anchors: of the samples.
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
    weights, found = [], []
    for field in slopes:
        crossed = field.crossed.masked_fill(left_out[:, None, None], 0.0)
        crossed = crossed[:, class_of] if len(class_of) > segments.classes else crossed
        crossed = crossed.view(groups, -1, len(class_of), segments.classes).transpose(1, 2).flatten(0, 1)
        weights.append(torch.bmm(own, crossed).view(groups, size, segments.classes))  # sum_B share_j X[class_j, nu]
        both = field.centers.masked_fill(left_out[:, None, None], 0.0)
        both = both.view(groups, -1, *both.shape[1:]).sum(dim=1)
        both = (both + both.mT)[:, :, class_of].mT.reshape(-1, segments.classes, 1)  # (G S, P, 1)
        near = torch.bmm(mean.products.view(-1, length, segments.classes), both)
        if field.products is not None:
            pull = field.products.masked_fill(left_out[:, None], 0.0)[:, class_of]
            pull = pull.view(groups, -1, len(class_of)).transpose(1, 2).reshape(len(near), -1, 1)
            near = near - torch.bmm(directions, pull)
        found.append(near.view(groups, size))
    by_class = torch.stack(weights, dim=-1)[:, :, class_of].transpose(1, 2).flatten(0, 1)  # (G S, C, fields)
    through_gram = torch.bmm(problem.gram.view(-1, length, size), by_class)  # a class's columns with its own weights
    return torch.stack(found) + through_gram.view(groups, size, -1).permute(2, 0, 1)
