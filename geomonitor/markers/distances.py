r"""Markers of distance: between all points, between points of one class, and the angle that two points make."""

from __future__ import annotations

import torch
from torch import Tensor

from geomonitor.markers.inputs import feature_matrix


def pair_distances(x: Tensor) -> Tensor:
    """Euclidean distances of the pairs ``q < r`` in the order of ``triu_indices``, exact zeros for equal points.

    Args:
        x: ``(Q, N)`` float64.

    Returns:
        ``(Q (Q - 1) / 2,)``; the memory needed does not depend on ``N``.
    """
    scale = x.abs().amax() if x.numel() else x.new_zeros(())
    scale = torch.where(scale > 0, scale, 1.0)
    condensed: Tensor = torch.pdist(x / scale)
    return scale * condensed


def feature_distance(pairs: Tensor) -> Tensor:
    r"""Mean distance of two different points, :math:`\operatorname{mean}_{q<r} \|z_q - z_r\|`.

    Args:
        pairs: from :func:`pair_distances`.

    Returns:
        0-dim float64 in units of the features; NaN for one point.

    Source: Chou et al. 2026.

    >>> feature_distance(pair_distances(torch.tensor([[3.0, 0.0], [0.0, 4.0]]).double())).item()
    5.0
    """
    return pairs.mean()


def within_class_distance(pairs: Tensor, class_of: Tensor) -> Tensor:
    """Mean distance of two different points of a class, averaged over the classes.

    Args:
        pairs: from :func:`pair_distances`.
        class_of: ``(Q,)`` class numbers from 0.

    Returns:
        0-dim float64 in units of the features. Classes of one point are left out; NaN if all are.

    Source: Chou et al. 2026.

    >>> x = torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0], [3.0, 0.0]]).double()
    >>> within_class_distance(pair_distances(x), torch.tensor([0, 0, 1, 1])).item()
    0.5
    """
    first, second = torch.triu_indices(len(class_of), len(class_of), offset=1, device=pairs.device)
    inside = class_of[first] == class_of[second]
    in_class = class_of[first][inside]
    sums = pairs.new_zeros(int(class_of.amax()) + 1).index_add(0, in_class, pairs[inside])
    counts = torch.zeros_like(sums).index_add(0, in_class, torch.ones_like(pairs[inside]))
    return torch.nanmean(sums / counts)


def angle(features: Tensor) -> Tensor:
    r"""Mean angle between two different points, seen from the origin.

    .. math::
        \operatorname{mean}_{q<r} 2\arcsin\tfrac12 \|u_q - u_r\|, \quad u = z / \|z\|

    The arc sine of half the chord is accurate at small angles; the arc cosine of the product loses digits there. An
    offset of all features changes the angle.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in radians, in ``[0, pi]``. Points at the origin are left out; NaN if fewer than two are left.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    Source: Chou et al. 2026.

    >>> round(angle(torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0], [3.0, 0.0]])).item(), 3)  # pi / 3
    1.047
    """
    x = feature_matrix(features)
    scale = x.abs().amax()
    x = x / torch.where(scale > 0, scale, 1.0)  # squares of tiny features are no zeros
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit = (x / norms)[norms[:, 0] > 0]
    return (2 * torch.asin((pair_distances(unit) / 2).clamp(max=1))).mean()  # rounding may make a chord longer than 2
