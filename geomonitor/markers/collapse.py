r"""Markers of class structure: how small the classes are against the distances between them, and neural collapse."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.markers.inputs import feature_matrix, given_matrix, require_labels
from geomonitor.markers.moments import Moments, moments_of

BETWEEN_CUTOFF = 1e-3
"""Eigenvalues of the between-class covariance below this share of the largest are left out of its pseudo-inverse
(Chou et al. 2026)."""


class NeuralCollapse(NamedTuple):
    """Markers of neural collapse, each a 0-dim float64 tensor."""

    nc1: Tensor
    """within-class covariance in units of the between-class covariance; falls towards 0 under collapse"""
    nc1_ratio: Tensor
    """the same as a plain ratio of total variances"""
    cdnv: Tensor
    """class-distance normalised variance, mean over pairs of classes"""
    nc2_equinorm: Tensor
    """coefficient of variation of the norms of the centred class means; 0 for a simplex frame"""
    nc2_equiangular: Tensor
    """distance of the Gram matrix of the centred class means from that of a simplex frame, both of norm 1"""
    nc3: Tensor
    """distance of the classifier's weights from the centred class means, both of norm 1; NaN without weights"""


def neural_collapse(features: Tensor, labels: Tensor, *, weight: Tensor | None = None) -> NeuralCollapse:
    r"""Neural collapse of class manifolds.

    .. math::
        \mathrm{nc1} = \tfrac1P \operatorname{tr}(S_w S_b^+), \qquad
        \mathrm{nc1\_ratio} = \operatorname{tr} S_w / \operatorname{tr} S_b, \qquad
        \mathrm{cdnv} = \operatorname{mean}_{c<d} \frac{v_c + v_d}{2 \|\mu_c-\mu_d\|^2}

        \mathrm{nc2\_equinorm} = \operatorname{std}_c\|m_c\| / \operatorname{mean}_c\|m_c\|, \qquad
        \mathrm{nc2\_equiangular} =
        \Bigl\| \tfrac{M M^\top}{\|M M^\top\|_F} - \tfrac{I - \mathbf 1\mathbf 1^\top/P}{\sqrt{P-1}} \Bigr\|_F, \qquad
        \mathrm{nc3} = \bigl\| \tfrac{W}{\|W\|_F} - \tfrac{M}{\|M\|_F} \bigr\|_F

    with :math:`S_w = \tfrac1Q\sum_i (z_i-\mu_{y_i})(\cdot)^\top` and
    :math:`S_b = \tfrac1P\sum_c m_c m_c^\top`, :math:`m_c = \mu_c-\bar\mu`, the rows of :math:`M`; :math:`\bar\mu` is
    the mean of all points, :math:`v_c` the mean squared distance of the points of class c from :math:`\mu_c`.

    Args:
        features: ``(Q, N)``, one point a row.
        labels: ``(Q,)`` integers, at least two classes.
        weight: ``(P, N)`` weights of a linear head on these features, one row for each class in ascending order.

    Returns:
        ``NeuralCollapse``, all ``>= 0``; NaN if all class means coincide (``cdnv``: if any two coincide).

    Raises:
        InputError: fewer than two classes, mismatched lengths, NaN or infinite features, weights of another shape.

    Source: Papyan, Han, Donoho 2020, NC1 to NC3; the pseudo-inverse of NC1 is cut at 1e-3 of the largest eigenvalue as
    in Chou et al. 2026; the angles of NC2 are compared through the Gram matrix as in Zhu et al. 2021; cdnv from
    Galanti, Gyorgy, Hutter 2021.

    >>> x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> [round(v.item(), 6) for v in neural_collapse(x, torch.tensor([0, 0, 1, 1]))[:3]]
    [0.0, 0.01, 0.0025]
    """
    x = feature_matrix(features)
    require_labels(labels, len(x))
    classes, groups = torch.unique(labels.to(x.device), return_inverse=True)
    return collapse_of(moments_of(x, groups, len(classes)), given_matrix("weight", weight))


def classifier_disagreement(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """NC4: share of points on which the linear classifier and the nearest class mean disagree.

    Args:
        features: ``(Q, N)``.
        labels: ``(Q,)`` integers; the class means are computed from these points.
        weight: ``(P, N)``, one row for each class in ascending order.
        bias: ``(P,)``.

    Returns:
        0-dim float64 in ``[0, 1]``.

    Raises:
        InputError: mismatched shapes, NaN or infinite features.

    Source: Papyan, Han, Donoho 2020, NC4.

    >>> x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-2.0, 0.0], [-2.0, 0.0]])
    >>> bias = torch.tensor([-1.5, 0.0])  # moves the border from 0 to 0.75
    >>> classifier_disagreement(x, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), bias).item()
    0.0
    """
    x = feature_matrix(features)
    require_labels(labels, len(x))
    classes, groups = torch.unique(labels.to(x.device), return_inverse=True)
    return disagreement_of(x, moments_of(x, groups, len(classes)), weight, bias)


def disagreement_of(x: Tensor, moments: Moments, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """NC4 from checked float64 features and their ``Moments``, one group a class."""
    w = _weight_like(weight, moments.means)
    scores = x @ w.T if bias is None else x @ w.T + bias.detach().to(x)
    center = moments.means.mean(dim=0)
    nearest = torch.cdist(x - center, moments.means - center).argmin(dim=1)
    return (scores.argmax(dim=1) != nearest).to(torch.float64).mean()


def collapse_of(moments: Moments, weight: Tensor | None = None) -> NeuralCollapse:
    """Neural collapse from ``Moments``, one group a class.

    Raises:
        InputError: fewer than two classes, a class without points, or weights of another shape.
    """
    classes = len(moments.counts)
    if classes < 2:
        raise InputError(f"class structure needs points of at least 2 classes; got {classes}")
    empty = torch.nonzero(moments.counts == 0).flatten().tolist()
    if empty:
        raise InputError(f"every class needs at least one point; classes without any: {empty}")
    points = moments.counts.sum()
    overall = moments.counts @ moments.means / points
    offsets = moments.means - overall
    scale = moments.means.abs().amax().clamp(min=torch.finfo(torch.float64).tiny)
    _, s, axes = torch.linalg.svd(offsets / scale, full_matrices=False)
    between = s.square() / classes  # eigenvalues of S_b, whose rank is P - 1 at most
    rounding = (torch.finfo(torch.float64).eps * 8) ** 2 * classes
    kept = between > torch.clamp(BETWEEN_CUTOFF * between.amax(), min=rounding)
    factor = moments.factor / scale
    within = (factor @ axes.T).square().sum(dim=0) / points
    ratios = torch.where(kept, within / between, 0.0)
    total_between = torch.where(kept.any(), between.sum(), 0.0)
    total_within = factor.square().sum() / points
    undefined = torch.full_like(points, torch.nan)
    variances = moments.spread / moments.counts / scale.square()
    means = torch.where(kept.any(), offsets / scale, torch.nan)
    return NeuralCollapse(
        torch.where(kept.any(), ratios.sum() / classes, undefined),
        torch.where(kept.any(), total_within / total_between, undefined),
        _normalized_variance(means, variances, rounding),
        _equinorm(means),
        _distance_from_simplex(means),
        undefined if weight is None else _distance_from_weight(means, _weight_like(weight, means)),
    )


def _normalized_variance(means: Tensor, variances: Tensor, rounding: float) -> Tensor:
    first, second = torch.triu_indices(len(means), len(means), offset=1, device=means.device)
    squared = (means[first] - means[second]).square().sum(dim=1)
    squared = torch.where(squared > rounding, squared, torch.nan)
    return ((variances[first] + variances[second]) / (2 * squared)).mean()


def _equinorm(means: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(means, dim=1)
    return norms.std(correction=0) / norms.mean()


def _distance_from_simplex(means: Tensor) -> Tensor:
    gram = means @ means.T
    simplex = torch.eye(len(means), dtype=means.dtype, device=means.device) - 1 / len(means)
    return _distance_of_directions(gram, simplex)


def _distance_from_weight(means: Tensor, weight: Tensor) -> Tensor:
    return _distance_of_directions(weight, means)


def _distance_of_directions(one: Tensor, other: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm
    distance: Tensor = norm(one / norm(one) - other / norm(other))
    return distance


def _weight_like(weight: Tensor, means: Tensor) -> Tensor:
    if weight.shape != means.shape:
        raise InputError(
            f"the head's weights must have one row a class and one column a unit, {tuple(means.shape)}; "
            f"got {tuple(weight.shape)}"
        )
    return weight.detach().to(means)
