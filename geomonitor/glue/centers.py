"""The mean anchors ``S0``: their Gram matrix, their products with points and directions, their alignment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.glue.anchors import Anchors
from geomonitor.glue.cosines import cosine_slopes, cosines, inverse_of, norms_of_rows
from geomonitor.glue.nnls.gram_problem import GramProblem


class Segments(NamedTuple):
    """Columns in consecutive segments of equal length, each of one class, the same in all groups."""

    class_of: Tensor  # (S,), int64
    length: int
    classes: int  # P, some may have no segment

    def sum_classes(self, parts: Tensor) -> Tensor:
        """Sums over the segments of each class, ``(..., S) -> (..., P)``."""
        if len(self.class_of) == self.classes:
            return parts  # segments are in the order of classes, at least one each
        return parts @ torch.nn.functional.one_hot(self.class_of, self.classes).to(parts.dtype)

    def classes_of(self, columns: Tensor) -> Tensor:
        return self.class_of[columns // self.length]


class Centers(NamedTuple):
    """Mean anchors ``s0`` of ``G`` groups."""

    shares: Tensor  # (G, C), s0 as combinations of columns
    gram: Tensor  # (G, P, P), <s0_mu, s0_nu>
    products: Tensor  # (G, C, P), <u_j, s0_nu>


def sum_of_shares(anchors: Anchors, group: Tensor, groups: int, columns: int) -> tuple[Tensor, Tensor]:
    """Sums over the converged directions of each group, the part of a mean that other processes must add to.

    Returns:
        shares ``(G, C)`` and number of directions ``(G,)``, float64.
    """
    good = anchors.converged.to(anchors.shares.dtype)
    places = group[:, None] * columns + anchors.columns.clamp(min=0)
    total = anchors.shares.new_zeros(groups * columns)
    total.scatter_add_(0, places.flatten(), (anchors.shares * good[:, None]).flatten())
    count = good.new_zeros(groups).scatter_add_(0, group, good)
    return total.view(groups, columns), count


def centers(gram: Tensor, segments: Segments, mean_shares: Tensor) -> Centers:
    """Mean anchors from mean shares.

    Args:
        gram: ``(G, C, C)``.
        segments: of the columns.
        mean_shares: ``(G, C)``.
    """
    groups, size = mean_shares.shape
    split = (-1, segments.length, size)
    parts = torch.bmm(mean_shares.view(-1, 1, segments.length), gram.view(split)).view(groups, -1, size)
    products = segments.sum_classes(parts.mT).contiguous()
    own = (products * mean_shares[..., None]).view(groups, -1, segments.length, segments.classes).sum(dim=2)
    return Centers(mean_shares, segments.sum_classes(own.mT).mT, products)


def products_with_directions(problem: GramProblem, segments: Segments, mean: Centers) -> Tensor:
    """``<s0_nu, t>`` for every direction, ``(B, P)``; every group has the same number of directions here."""
    size = mean.shares.shape[1]
    terms = (problem.products * problem.signs).view(len(mean.shares), -1, size).mul_(mean.shares[:, None])
    return segments.sum_classes(terms.view(len(problem.products), -1, segments.length).sum(dim=2))


def center_alignment(center_gram: Tensor) -> tuple[Tensor, Tensor]:
    """Mean signed and absolute cosine of centres over ordered class pairs, ``(G,)`` each; NaN without a pair."""
    norms = norms_of_rows(center_gram, center_gram.diagonal(dim1=1, dim2=2).amax(dim=1))
    signed, absolute, pairs = cosines(center_gram, norms, norms).sums()
    return signed / pairs, absolute / pairs


def center_influence(center_gram: Tensor, axis_center: Tensor) -> tuple[Tensor, Tensor]:
    """First-order change of both mean cosines of centres when they move by a direction's ``s1``, ``(B,)`` each.

    Args:
        center_gram: ``(G, P, P)``.
        axis_center: ``(B, P, P)``, ``<s1_mu, s0_nu>``, groups one after the other.
    """
    norms = norms_of_rows(center_gram, center_gram.diagonal(dim1=1, dim2=2).amax(dim=1))
    found = cosines(center_gram, norms, norms)
    pairs = found.defined.sum(dim=(1, 2))[:, None, None]
    moved = axis_center.view(len(center_gram), -1, *center_gram.shape[1:])
    values, signs = found.both()
    inverse = inverse_of(norms)
    by_products, by_left, by_right = cosine_slopes(values, inverse, inverse, signs)
    slopes = (by_products + torch.diag_embed(by_left + by_right)) / pairs
    signed, absolute = 2 * (moved * slopes[:, :, None]).sum(dim=(3, 4)).flatten(1)
    return signed, absolute
