"""The three scalars of a direction, and what its anchors contribute to the alignments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.glue.anchors import Anchors
from geomonitor.glue.center_slopes import (
    Slopes,
    axis_slopes,
    center_axis_slopes,
    projection_slopes,
    total_slopes,
)
from geomonitor.glue.centers import Centers, Segments, center_influence, products_with_directions
from geomonitor.glue.cosines import cosine_slopes, cosines, inverse_of, norms_of_rows
from geomonitor.glue.nnls.gram_problem import GramProblem, active_blocks
from geomonitor.glue.pseudo_inverse import projection


class Scalars(NamedTuple):
    """What remains of a direction; every field has shape ``(B,)``.

    Alignments are sums of cosines over ordered class pairs, and the numbers of pairs that have one. The effects are
    what the direction does to the means of other fields through the mean anchors ``s0``: as large as the field itself.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    axis: Tensor
    absolute_axis: Tensor
    axis_pairs: Tensor
    center_axis: Tensor
    absolute_center_axis: Tensor
    center_axis_pairs: Tensor
    center_influence: Tensor
    absolute_center_influence: Tensor
    residual: Tensor
    converged: Tensor
    b_effect: Tensor
    c_effect: Tensor
    axis_effect: Tensor
    absolute_axis_effect: Tensor
    center_axis_effect: Tensor
    absolute_center_axis_effect: Tensor


class DirectionScalars(NamedTuple):
    """What the measures are made of, for ``G`` problems (1 joint one, or one per pair) of ``T`` directions."""

    scalars: Scalars  # fields (G, T)
    center: Tensor  # (G,), mean cosine of centres
    absolute_center: Tensor  # (G,)


# An entry that is gathered takes as long as this many products and sums within a product of matrices.
GATHERED_COST = 200
EFFECTS = ("b", "c", "axis", "absolute_axis", "center_axis", "absolute_center_axis")


def sample_scalars(
    problem: GramProblem, segments: Segments, lengths: Tensor, anchors: Anchors, mean: Centers
) -> tuple[Scalars, Tensor]:
    """The scalars of a batch of directions.

    Args:
        problem: Gram matrices, products with the targets of length one; groups of equally many directions.
        segments: of the columns.
        lengths: ``(B,)``, norms of the directions.
        anchors: of these directions.
        mean: mean anchors over all directions, also those of other batches and processes.

    Returns:
        the scalars, effects still zero, and the derivatives by mean shares of the sums over converged directions of the
        fields that have effects, ``(6, G, C)``.
    """
    rows, gram, products = _own_gram(problem, segments, anchors)
    used, groups = anchors.columns.clamp(min=0), len(mean.gram)
    near = mean.products[0][used] if groups == 1 else mean.products[problem.group[:, None], used]
    center_gram = mean.gram[problem.group] if groups > 1 else mean.gram.expand(len(rows), -1, -1)
    axis_center = rows @ near - center_gram  # <s1_mu, s0_nu>
    axis_gram = gram - axis_center - axis_center.mT - center_gram  # <s1_mu, s1_nu>
    scale = torch.maximum(gram.diagonal(dim1=1, dim2=2), center_gram.diagonal(dim1=1, dim2=2)).amax(dim=1)
    axis_products = (products - products_with_directions(problem, segments, mean)) * lengths[:, None]
    grams = torch.stack((axis_gram, axis_gram + center_gram))
    (b, c), coefficients = projection(grams, axis_products.expand(2, -1, -1), scale.expand(2, -1))
    axis_norms, center_norms = norms_of_rows(axis_gram, scale), norms_of_rows(center_gram, scale)
    axis = cosines(axis_gram, axis_norms, axis_norms)
    center_axis = cosines(axis_center.mT, center_norms, axis_norms)

    def slopes() -> Iterator[Slopes]:  # two at a time: each is as large as the Gram matrices of the anchors
        yield projection_slopes(coefficients, lengths)
        by_axis, by_center = inverse_of(axis_norms), inverse_of(center_norms)
        values, signs = axis.both()
        yield axis_slopes(*cosine_slopes(values, by_axis, by_axis, signs))
        values, signs = center_axis.both()
        yield center_axis_slopes(*cosine_slopes(values, by_center, by_axis, signs))

    signed, absolute = center_influence(mean.gram, axis_center)
    zero = torch.zeros_like(anchors.residual)
    scalars = Scalars(
        _a(problem, gram, products, lengths, anchors),
        b,
        c,
        *axis.sums(),
        *center_axis.sums(),
        signed,
        absolute,
        anchors.residual,
        anchors.converged,
        *(zero for _ in EFFECTS),
    )
    return scalars, total_slopes(slopes(), problem, segments, anchors, mean)


def _a(problem: GramProblem, gram: Tensor, products: Tensor, lengths: Tensor, anchors: Anchors) -> Tensor:
    """``(S t)^T (S S^T)^+ (S t)``.

    Without a ridge it is the squared projection of ``t`` on the cone, which is better conditioned. With a ridge the
    dual weights give another point of the cone, and the formula in ``S`` is what is left.
    """
    if not problem.ridge:
        return anchors.squared_projection
    scale = gram.diagonal(dim1=1, dim2=2).amax(dim=1)
    return projection(gram, products, scale)[0] * lengths.square()


def _own_gram(problem: GramProblem, segments: Segments, anchors: Anchors) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors as rows ``(B, P, n)`` over active columns, ``<s_mu, s_nu>`` and ``<s_mu, t>``."""
    used = anchors.columns.clamp(min=0)
    own = segments.classes_of(used)
    rows = anchors.shares.new_zeros(len(used), segments.classes, used.shape[1])
    rows.scatter_(1, own[:, None], anchors.shares[:, None])
    if _fewer_in_feature_space(problem, used.shape[1]):
        points = _anchors_in_feature_space(problem, segments, anchors)
        gram = points @ points.mT
    else:
        gram = rows @ active_blocks(problem, anchors.columns) @ rows.mT
    unsigned = problem.products.gather(1, used) * problem.signs.gather(1, used)
    return rows, gram, (rows @ unsigned[..., None])[..., 0]


def _fewer_in_feature_space(problem: GramProblem, active: int) -> bool:
    """Whether all columns times their weights take less time than to gather the Gram matrix of the active ones."""
    return problem.units is not None and problem.units.numel() < GATHERED_COST * active**2


def _anchors_in_feature_space(problem: GramProblem, segments: Segments, anchors: Anchors) -> Tensor:
    """Anchors ``(B, P, N)``, of one group."""
    assert problem.units is not None
    shares = torch.zeros_like(problem.products).scatter_add_(1, anchors.columns.clamp(min=0), anchors.shares)
    of_segments = shares.view(len(shares), -1, segments.length).transpose(0, 1)
    parts = torch.bmm(of_segments, problem.units.view(-1, segments.length, problem.units.shape[1]))  # (S, B, N)
    return segments.sum_classes(parts.permute(1, 2, 0)).mT


def with_effects(
    scalars: Scalars, mean_slopes: Tensor, anchors: Anchors, mean_shares: Tensor, group: Tensor
) -> Scalars:
    """Adds what each direction does to the means of other fields by moving the mean anchors.

    Args:
        scalars: of a batch.
        mean_slopes: ``(6, G, C)``, derivatives of means over all directions.
        anchors: of the batch.
        mean_shares: ``(G, C)``.
        group: ``(B,)``.
    """
    places = group[:, None] * mean_shares.shape[1] + anchors.columns.clamp(min=0)
    own = mean_slopes.flatten(1)[:, places]
    effects = (own * anchors.shares).sum(dim=2) - (mean_slopes * mean_shares).sum(dim=2)[:, group]
    return scalars._replace(**{f"{name}_effect": effect for name, effect in zip(EFFECTS, effects, strict=True)})
