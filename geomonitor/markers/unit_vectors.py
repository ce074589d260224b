r"""Markers of the directions of points, their length taken away: how evenly they cover the sphere, and anisotropy."""

from __future__ import annotations

import torch
from torch import Tensor

from geomonitor.markers.distances import pair_distances
from geomonitor.markers.estimate import Estimate, error_of, jackknife
from geomonitor.markers.inputs import feature_matrix

KERNEL = 2.0
"""Factor ``t`` on the squared distance in the kernel of uniformity: what Wang and Isola used throughout."""
ROUNDING = 8 * torch.finfo(torch.float64).eps
"""Share of the largest point below which a difference from the mean is rounding, and has no direction."""


def unit_rows(x: Tensor) -> Tensor:
    """Rows ``(Q, N)`` float64 brought to length one; rows of zeros are NaN. Squares of tiny features are no zeros."""
    x = x / x.abs().amax(dim=1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norms


def uniformity(features: Tensor, groups: Tensor | None = None) -> Estimate:
    r"""How evenly the directions of points cover the sphere: :math:`\ln\operatorname{mean}_{i<j} e^{-2\|u_i-u_j\|^2}`.

    Args:
        features: ``(Q, N)``, one view of each point.
        groups: ``(Q,)`` which points belong together, for the error: tokens of a sequence are not independent.

    Returns:
        Value in ``[-8, 0]``: 0 if all directions are equal, about -4 if they are uniform and ``N`` is large; with the
        error of a U-statistic over points. Points at the origin are left out; NaN if fewer than two are left.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    Source: Wang and Isola 2020, arXiv:2005.10242.

    >>> round(uniformity(torch.eye(2)).value.item(), 6)  # two points, at a squared distance of 2
    -4.0
    """
    units, groups = _directions(feature_matrix(features), groups)
    if len(units) < 2:
        return _undefined(features)
    first, second = torch.triu_indices(len(units), len(units), offset=1, device=units.device)
    kernel = torch.exp(-KERNEL * pair_distances(units).square())
    mean = kernel.mean()
    sums = units.new_zeros(len(units)).index_add(0, first, kernel).index_add(0, second, kernel)
    of_point = sums / (len(units) - 1)
    return Estimate(mean.log(), error_of(2 * (of_point - mean) / len(units) / mean, groups))


def mean_cosine(features: Tensor, groups: Tensor | None = None) -> Estimate:
    r"""Mean cosine of two different points: :math:`(\|\sum_i u_i\|^2 - Q) / (Q (Q-1))`, the anisotropy.

    A single channel with a large offset makes it nearly 1: read it beside :func:`centred_mean_cosine` and
    :func:`geomonitor.markers.activity.top_channel_share`.

    Args:
        features: ``(Q, N)``.
        groups: ``(Q,)`` which points belong together, for the error: tokens of a sequence are not independent.

    Returns:
        Value in ``[-1/(Q-1), 1]``, 0 if directions are isotropic, and its jackknife error over points. Points at the
        origin are left out; NaN if fewer than two are left.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    Source: Ethayarajh 2019, arXiv:1909.00512.

    >>> round(mean_cosine(torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0]])).value.item(), 6)  # 0, 1 and 0
    0.333333
    """
    return _mean_cosine(*_directions(feature_matrix(features), groups), features)


def centred_mean_cosine(features: Tensor, groups: Tensor | None = None) -> Estimate:
    """As :func:`mean_cosine`, of the points less their mean: a common offset does not count.

    Args:
        features: ``(Q, N)``.
        groups: ``(Q,)`` which points belong together, for the error: tokens of a sequence are not independent.

    Returns:
        Value in ``[-1/(Q-1), 1]`` and its jackknife error over points, to first order in the move of the mean. NaN if
        all points are equal.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    Source: Ethayarajh 2019, arXiv:1909.00512; the centred one as in Cai et al. 2021.

    >>> centred_mean_cosine(torch.tensor([[101.0, 0.0], [99.0, 0.0], [100.0, 5.0], [100.0, -5.0]])).value.item()
    -0.3333333333333333
    """
    x = feature_matrix(features)
    x = x / x.abs().amax().clamp(min=torch.finfo(x.dtype).tiny)
    sizes = torch.linalg.vector_norm(x, dim=1)
    offsets = x - x.mean(dim=0)
    kept = torch.linalg.vector_norm(offsets, dim=1) > ROUNDING * sizes.amax()
    offsets = offsets[kept]
    units, groups = _directions(offsets, None if groups is None else groups.to(kept.device)[kept])
    found = _mean_cosine(units, groups, features)
    n = len(units)
    if n < 3:
        return found
    # Without point i the mean moves by -d_i / (n - 1), and direction j by (I - u_j u_j^T) d_i / (n - 1) / |d_j|.
    near = 1 / torch.linalg.vector_norm(offsets, dim=1)
    turned = near.sum() * offsets - (offsets @ units.T * near) @ units
    others = (units.sum(dim=0) - units + turned / (n - 1)).square().sum(dim=1)
    return Estimate(found.value, jackknife((others - (n - 1)) / ((n - 1) * (n - 2)), groups))


def _directions(x: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Unit rows, without those of points at the origin, and their groups."""
    kept = (x != 0).any(dim=1)
    return unit_rows(x[kept]), None if groups is None else groups.to(kept.device)[kept]


def _mean_cosine(units: Tensor, groups: Tensor | None, like: Tensor) -> Estimate:
    n = len(units)
    if n < 2:
        return _undefined(like)
    total = units.sum(dim=0)
    squared = total @ total
    value = (squared - n) / (n * (n - 1))
    if n < 3:
        return Estimate(value, value.new_tensor(torch.nan))
    others = squared - 2 * units @ total + 1
    return Estimate(value, jackknife((others - (n - 1)) / ((n - 1) * (n - 2)), groups))


def _undefined(like: Tensor) -> Estimate:
    nan = torch.tensor(torch.nan, dtype=torch.float64, device="cpu" if like.device.type == "mps" else like.device)
    return Estimate(nan, nan)
