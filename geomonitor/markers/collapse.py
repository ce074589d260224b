r"""Markers of class structure: how small the classes are against the distances between them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.markers.inputs import feature_matrix, require_labels
from geomonitor.markers.moments import Moments, add_points, empty_moments

BETWEEN_CUTOFF = 1e-3
"""Eigenvalues of the between-class covariance below this share of the largest are left out of its pseudo-inverse
(Chou et al. 2026)."""


class NeuralCollapse(NamedTuple):
    """Markers of neural collapse, each a 0-dim float64 tensor."""

    nc1: Tensor
    """within-class covariance in units of the between-class covariance; falls towards 0 under collapse"""
    nc1_ratio: Tensor
    """the same as a plain ratio of total variances"""


def neural_collapse(features: Tensor, labels: Tensor) -> NeuralCollapse:
    r"""Neural collapse of class manifolds.

    .. math::
        \mathrm{nc1} = \tfrac1P \operatorname{tr}(S_w S_b^+), \qquad
        \mathrm{nc1\_ratio} = \operatorname{tr} S_w / \operatorname{tr} S_b

    with :math:`S_w = \tfrac1Q\sum_i (z_i-\mu_{y_i})(\cdot)^\top` and
    :math:`S_b = \tfrac1P\sum_c(\mu_c-\bar\mu)(\cdot)^\top`, :math:`\bar\mu` the mean of all points.

    Args:
        features: ``(Q, N)``, one point a row.
        labels: ``(Q,)`` integers, at least two classes.

    Returns:
        ``NeuralCollapse(nc1, nc1_ratio)``, both ``>= 0``; NaN where all class means coincide.

    Raises:
        InputError: fewer than two classes, mismatched lengths, NaN or infinite features.

    Source: Papyan, Han, Donoho 2020; the pseudo-inverse is cut at 1e-3 of the largest eigenvalue as in Chou et al.
    2026.

    >>> x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> [round(v.item(), 6) for v in neural_collapse(x, torch.tensor([0, 0, 1, 1]))]
    [0.0, 0.01]
    """
    x = feature_matrix(features)
    require_labels(labels, len(x))
    classes, groups = torch.unique(labels.to(x.device), return_inverse=True)
    return collapse_of(add_points(empty_moments(len(classes), x), x, groups))


def collapse_of(moments: Moments) -> NeuralCollapse:
    """Neural collapse from class moments, one group a class.

    Raises:
        InputError: fewer than two classes, or a class without points.
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
    return NeuralCollapse(
        torch.where(kept.any(), ratios.sum() / classes, undefined),
        torch.where(kept.any(), total_within / total_between, undefined),
    )
