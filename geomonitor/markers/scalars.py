"""The three scalars of a sample, and what its anchors say about alignments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.markers.active_set import GramProblem, active_blocks
from geomonitor.markers.anchors import Anchors
from geomonitor.markers.pseudo_inverse import ZERO_ROW, projected_square


class Scalars(NamedTuple):
    """What remains of a sample; every field has shape ``(B,)``.

    Alignments are sums of cosines over ordered class pairs, and the numbers of pairs that have one. The
    effects are what the sample does to the means of other fields through the mean anchors ``s0``: as large as
    the field itself.
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


class Centers(NamedTuple):
    """Mean anchors ``s0`` of ``G`` groups as combinations of columns of length one."""

    weights: Tensor  # (G, C, P)
    gram: Tensor  # (G, P, P), <s0_mu, s0_nu>
    products: Tensor  # (G, C, P), <u_j, s0_nu>


EFFECTS = ("b", "c", "axis", "absolute_axis", "center_axis", "absolute_center_axis")


def sum_of_shares(anchors: Anchors, group: Tensor, groups: int, columns: int) -> tuple[Tensor, Tensor]:
    """Sums over the converged samples of each group, the part of a mean that other processes must add to.

    Returns:
        shares ``(G, C)`` and number of samples ``(G,)``, float64.
    """
    good = anchors.converged.to(anchors.shares.dtype)
    places = group[:, None] * columns + anchors.columns.clamp(min=0)
    total = anchors.shares.new_zeros(groups * columns)
    total.scatter_add_(0, places.flatten(), (anchors.shares * good[:, None]).flatten())
    count = good.new_zeros(groups).scatter_add_(0, group, good)
    return total.view(groups, columns), count


def centers(gram: Tensor, class_of: Tensor, classes: int, mean_shares: Tensor) -> Centers:
    """Mean anchors from mean shares.

    Args:
        gram: ``(G, C, C)``.
        class_of: ``(G, C)``.
        classes: ``P``.
        mean_shares: ``(G, C)``.
    """
    weights = torch.nn.functional.one_hot(class_of, classes).to(gram.dtype) * mean_shares[..., None]
    products = gram @ weights
    return Centers(weights, weights.mT @ products, products)


def sample_scalars(
    problem: GramProblem, class_of: Tensor, lengths: Tensor, anchors: Anchors, mean_shares: Tensor
) -> tuple[Scalars, Tensor]:
    """The scalars of a batch of samples.

    Args:
        problem: Gram matrices, products with the targets of length one.
        class_of: ``(G, C)``.
        lengths: ``(B,)``, norms of the directions.
        anchors: of these samples.
        mean_shares: ``(G, C)``, mean anchors over all samples, those of other batches and processes too.

    Returns:
        the scalars, effects still zero, and the derivatives by ``mean_shares`` of the sums over converged
        samples of the fields that have effects, ``(6, G, C)``.
    """
    classes = int(class_of.max()) + 1
    used = anchors.columns.clamp(min=0)
    own = torch.nn.functional.one_hot(class_of[problem.group].gather(1, used), classes)
    rows = (own * anchors.shares[..., None]).mT  # (B, P, n)
    gram = rows @ active_blocks(problem, anchors.columns) @ rows.mT  # <s_mu, s_nu>
    unsigned = problem.products.gather(1, used) * problem.signs.gather(1, used)
    products = (rows @ unsigned[..., None])[..., 0]  # <s_mu, t>
    with torch.enable_grad():
        shares = mean_shares.clone().requires_grad_()
        mean = centers(problem.gram, class_of, classes, shares)
        crossed = rows @ mean.products[problem.group[:, None], used]  # <s_mu, s0_nu>
        mean_products = _per_group(problem, mean.weights)
        fields = _by_centers(gram, crossed, mean.gram[problem.group], (products - mean_products) * lengths[:, None])
        good = anchors.converged.to(gram.dtype)
        moving = [getattr(fields, name) for name in EFFECTS]
        slopes = [torch.autograd.grad((field * good).sum(), shares, retain_graph=True)[0] for field in moving]
    center_gram = mean.gram[problem.group].detach()
    zero = torch.zeros_like(anchors.residual)
    center = _center_influence(center_gram, crossed.detach() - center_gram)
    scalars = Scalars(
        a=anchors.squared_projection,
        **{name: field.detach() for name, field in fields._asdict().items()},
        center_influence=center[0],
        absolute_center_influence=center[1],
        residual=anchors.residual,
        converged=anchors.converged,
        **{f"{name}_effect": zero for name in EFFECTS},
    )
    return scalars, torch.stack(slopes)


def with_effects(
    scalars: Scalars, mean_slopes: Tensor, anchors: Anchors, mean_shares: Tensor, group: Tensor
) -> Scalars:
    """Adds what each sample does to the means of other fields by moving the mean anchors.

    Args:
        scalars: of a batch.
        mean_slopes: ``(6, G, C)``, derivatives of means over all samples.
        anchors: of the batch.
        mean_shares: ``(G, C)``.
        group: ``(B,)``.
    """
    own = mean_slopes[:, group[:, None], anchors.columns.clamp(min=0)]
    effects = (own * anchors.shares).sum(dim=2) - (mean_slopes * mean_shares).sum(dim=2)[:, group]
    return scalars._replace(**{f"{name}_effect": effect for name, effect in zip(EFFECTS, effects, strict=True)})


class _ByCenters(NamedTuple):
    """The scalars that depend on the mean anchors."""

    b: Tensor
    c: Tensor
    axis: Tensor
    absolute_axis: Tensor
    axis_pairs: Tensor
    center_axis: Tensor
    absolute_center_axis: Tensor
    center_axis_pairs: Tensor


def _by_centers(gram: Tensor, crossed: Tensor, center_gram: Tensor, axis_products: Tensor) -> _ByCenters:
    axis_gram = gram - crossed - crossed.mT + center_gram
    scale = torch.maximum(gram.diagonal(dim1=1, dim2=2), center_gram.diagonal(dim1=1, dim2=2)).amax(dim=1).detach()
    axis_norms, center_norms = _norms(axis_gram, scale), _norms(center_gram, scale)
    return _ByCenters(
        projected_square(axis_gram, axis_products, scale),
        projected_square(axis_gram + center_gram, axis_products, scale),
        *_cosine_sums(axis_gram, axis_norms, axis_norms),
        *_cosine_sums(crossed.mT - center_gram, center_norms, axis_norms),
    )


def center_alignment(center_gram: Tensor) -> tuple[Tensor, Tensor]:
    """Mean signed and absolute cosine of centres over ordered class pairs, shape ``(G,)`` each; NaN without a
    pair.
    """
    norms = _norms(center_gram, center_gram.diagonal(dim1=1, dim2=2).amax(dim=1))
    signed, absolute, pairs = _cosine_sums(center_gram, norms, norms)
    return signed / pairs, absolute / pairs


def _per_group(problem: GramProblem, weights: Tensor) -> Tensor:
    """``<s0_nu, t>`` for every sample, ``(B, P)``."""
    products = problem.products * problem.signs
    if len(weights) == 1:
        return products @ weights[0]
    groups, size, classes = weights.shape  # every group has all its samples here
    return (products.view(groups, -1, size) @ weights).view(-1, classes)


def _norms(gram: Tensor, scale: Tensor) -> Tensor:
    """Norms of rows, zero (with derivative zero) where they are rounding error."""
    squares = gram.diagonal(dim1=1, dim2=2)
    present = squares > ZERO_ROW * scale[:, None]
    return torch.where(present, squares, 1.0).sqrt() * present


def _cosines(products: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of ordered pairs ``mu != nu``, 0 where a norm is zero, and which pairs have one."""
    lengths = left[:, :, None] * right[:, None, :]
    defined = lengths > 0
    defined.diagonal(dim1=1, dim2=2).fill_(False)
    return torch.where(defined, products, 0.0) / torch.where(defined, lengths, 1.0), defined


def _cosine_sums(products: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    cosines, defined = _cosines(products, left, right)
    return cosines.sum(dim=(1, 2)), cosines.abs().sum(dim=(1, 2)), defined.sum(dim=(1, 2)).to(products.dtype)


def _center_influence(center_gram: Tensor, axis_center: Tensor) -> tuple[Tensor, Tensor]:
    """First-order change of the mean cosine of centres when they move by this sample's ``s1``."""
    norms = _norms(center_gram, center_gram.diagonal(dim1=1, dim2=2).amax(dim=1))
    cosines, defined = _cosines(center_gram, norms, norms)
    lengths = torch.where(defined, norms[:, :, None] * norms[:, None, :], 1.0)
    stretch = axis_center.diagonal(dim1=1, dim2=2) / torch.where(norms > 0, norms.square(), 1.0)
    change = (axis_center + axis_center.mT) / lengths - cosines * (stretch[:, :, None] + stretch[:, None, :])
    change = torch.where(defined, change, 0.0)
    pairs = defined.sum(dim=(1, 2))
    return change.sum(dim=(1, 2)) / pairs, (change * cosines.sign()).sum(dim=(1, 2)) / pairs
