r"""Markers of distance: between all points, between points of one class, and the angle that two points make."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.markers.inputs import feature_matrix, require_labels


class Distances(NamedTuple):
    """Markers of distance, each a 0-dim float64 tensor."""

    feature_distance: Tensor
    """mean distance of two different points"""
    within_class_distance: Tensor
    """mean distance of two points of a class, averaged over the classes"""
    angle: Tensor
    """mean angle between two different points, in radians"""


def distances(features: Tensor, labels: Tensor) -> Distances:
    r"""Mean pairwise distances and angles.

    .. math::
        \mathrm{feature\_distance} = \operatorname{mean}_{q<r} \|z_q - z_r\|, \qquad
        \mathrm{angle} = \operatorname{mean}_{q<r} 2\arcsin\tfrac12 \|u_q - u_r\|, \quad u = z / \|z\|

    The angle is seen from the origin and so, as in the paper, the one of these that an offset changes. The arc sine
    of half the chord has no trouble with rounding at small angles, where the arc cosine of the product has.

    Args:
        features: ``(Q, N)``. The memory needed is ``Q^2`` numbers, not ``Q^2 N``.
        labels: ``(Q,)`` integers.

    Returns:
        ``Distances``, distances in units of the features, the angle in ``[0, pi]``. Points at the origin make no angle
        and classes of one point have no distance: they are left out; NaN where nothing is left.

    Raises:
        InputError: mismatched lengths, NaN or infinite features.

    Source: Chou et al. 2026.

    >>> x = torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0], [3.0, 0.0]])
    >>> [round(v.item(), 3) for v in distances(x, torch.tensor([0, 0, 1, 1]))]
    [2.423, 0.5, 1.047]
    """
    x = feature_matrix(features)
    require_labels(labels, len(x))
    return distances_from(x, pair_distances(x), labels.to(x.device))


def distances_from(x: Tensor, pairs: Tensor, labels: Tensor) -> Distances:
    """The same from checked features and their :func:`pair_distances`, which other markers share."""
    _, groups = torch.unique(labels, return_inverse=True)
    first, second = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    inside = groups[first] == groups[second]
    in_class = groups[first][inside]
    sums = x.new_zeros(int(groups.amax()) + 1).index_add(0, in_class, pairs[inside])
    counts = torch.zeros_like(sums).index_add(0, in_class, torch.ones_like(pairs[inside]))
    scale = x.abs().amax()
    x = x / torch.where(scale > 0, scale, 1.0)  # squares of tiny features are no zeros
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit = (x / norms)[norms[:, 0] > 0]
    angles = 2 * torch.asin((pair_distances(unit) / 2).clamp(max=1))  # rounding may make a chord of 2 longer
    return Distances(pairs.mean(), torch.nanmean(sums / counts), angles.mean())


def pair_distances(x: Tensor) -> Tensor:
    """Euclidean distances of the pairs ``q < r`` in the order of ``triu_indices``, exact zeros for equal points."""
    scale = x.abs().amax() if x.numel() else x.new_zeros(())
    scale = torch.where(scale > 0, scale, 1.0)
    condensed: Tensor = torch.pdist(x / scale)
    return scale * condensed
