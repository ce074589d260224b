r"""Markers of activity: how many entries and units are active at all, how units vary together, their length.

A unit is dead by its largest *magnitude*: behind a ReLU that is its largest activation, and behind a tanh, GELU or
nothing a unit that is always negative is not dead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomonitor.markers.estimate import Estimate, error_of
from geomonitor.markers.inputs import feature_matrix
from geomonitor.markers.singular_values import Spectrum

ACTIVE_ABOVE = 1e-6
"""Magnitude above which an entry counts as active (Chou et al. 2026); it has the unit of the features."""

COVARIANCE_UNITS = 4096
"""Units taken for the mean covariance: a wider layer is thinned out evenly, since the cost is ``Q N^2``."""

BLOCK = 512
"""Rows of the covariance held at once."""


def active_fraction(features: Tensor) -> Tensor:
    r"""Share of entries with :math:`|z_{qn}| > 10^{-6}`; the paper calls it sparsity.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[0, 1]``.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    Source: Chou et al. 2026.

    >>> active_fraction(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 5.0]])).item()
    0.5
    """
    return (feature_matrix(features).abs() > ACTIVE_ABOVE).to(torch.float64).mean()


def dead_units(features: Tensor) -> Tensor:
    r"""Share of units without an active entry at any point, :math:`\max_q |z_{qn}| \le 10^{-6}`.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[0, 1]``.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    >>> round(dead_units(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 5.0]])).item(), 3)
    0.333
    """
    return (feature_matrix(features).abs().amax(dim=0) <= ACTIVE_ABOVE).to(torch.float64).mean()


def mean_covariance(spectrum: Spectrum) -> Tensor:
    r"""Mean absolute covariance of two different units.

    .. math::
        \operatorname{mean}_{n \ne k} |\operatorname{cov}(z_n, z_k)|

    The covariance is divided by ``Q``, as everywhere in this package.

    Args:
        spectrum: of the features. If there are more than 4096 units, 4096 evenly spaced ones are used.

    Returns:
        0-dim float64, ``>= 0``, in squared units of the features; NaN for one unit.

    Source: Chou et al. 2026.

    >>> round(mean_covariance(Spectrum.of(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 5.0]]))).item(), 3)
    0.25
    """
    x = spectrum.matrix[:, :: -(-spectrum.units // COVARIANCE_UNITS)]
    units = x.shape[1]
    if units < 2:
        return x.new_tensor(torch.nan)
    if units == len(spectrum.gram) < len(x):  # `gram` holds the products of the units
        total = spectrum.gram.abs().sum()
    else:
        total = torch.stack([(rows @ x).abs().sum() for rows in torch.split(x.T, BLOCK)]).sum()
    between = (total - x.square().sum()).clamp(min=0)
    return between / (spectrum.points * units * (units - 1)) * spectrum.scale.square()


def mean_norm(features: Tensor) -> Tensor:
    """Mean Euclidean norm of a feature vector.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64, ``>= 0``, in units of the features.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    >>> mean_norm(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 5.0]])).item()
    5.0
    """
    return _norms(features).mean()


def norm_variation(features: Tensor) -> Tensor:
    """Standard deviation of the norms of the feature vectors over their mean.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64, ``>= 0``; NaN if all features are zero.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    >>> norm_variation(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 5.0]])).item()
    0.0
    """
    norms = _norms(features)
    return norms.std(correction=0) / norms.mean()


def _norms(features: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(feature_matrix(features), dim=1)
    return norms


def top_channel_share(features: Tensor, groups: Tensor | None = None) -> Estimate:
    r"""Share of the mean square that the largest unit bears: :math:`\max_j E z_j^2 / \sum_j E z_j^2`.

    It depends on the axes, on purpose: massive activations of few units dominate cosines and cost low precision.

    Args:
        features: ``(Q, N)``.
        groups: ``(Q,)`` which points belong together, for the error: tokens of a sequence are not independent.

    Returns:
        Value in ``[1/N, 1]`` and its error over points, by the delta method for that unit; NaN if all
        features are zero.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    Source: geomonitor; on massive activations Sun et al. 2024, arXiv:2402.17762.

    >>> round(top_channel_share(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).value.item(), 6)
    0.9
    """
    x = feature_matrix(features)
    squares = (x / x.abs().amax()).square()
    total = squares.sum()
    largest = squares[:, squares.sum(dim=0).argmax()]
    value = largest.sum() / total
    return Estimate(value, error_of((largest - value * squares.sum(dim=1)) / total, groups))
