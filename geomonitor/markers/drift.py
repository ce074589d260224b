r"""Drift: how far the representation of the same points has moved, and how deep a marker fell within a window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.markers.singular_values import Spectrum


def linear_cka(features: Tensor, reference: Tensor) -> Tensor:
    r"""Linear centred kernel alignment of two representations of the same points.

    .. math::
        \mathrm{CKA} = \frac{\|X^\top Y\|_F^2}{\|X^\top X\|_F \|Y^\top Y\|_F}, \qquad X, Y \text{ centred}

    Args:
        features: ``(Q, N)``.
        reference: ``(Q, K)``, the same points in the same order.

    Returns:
        0-dim float64 in ``[0, 1]``; 1 for the same representation up to rotation, scale and offset; NaN if all
        points of one of them are equal.

    Raises:
        InputError: different numbers of points, wrong rank, NaN or infinite entries.

    Source: Kornblith et al. 2019.

    >>> x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    >>> round(linear_cka(x, 3 * x.flip(1) + 7).item(), 6)
    1.0
    """
    return _alignment(Spectrum.of(features), Spectrum.of(reference.to(features.device)))


def drift(features: Tensor, reference: Tensor) -> Tensor:
    """``1 - CKA``: 0 for an unchanged representation, up to 1 for one without any linear relation to it.

    >>> drift(torch.eye(4), -2 * torch.eye(4)).item()
    0.0
    """
    return 1 - linear_cka(features, reference)


def drift_of(points: Spectrum, reference: Tensor) -> Tensor:
    """The same from the spectrum of the features, whose Gram matrix other markers share."""
    return 1 - _alignment(points, Spectrum.of(reference.to(points.matrix.device)))


def largest_drop(values: Sequence[float] | Tensor, window: int) -> Tensor:
    r"""Largest fall of a series within ``window`` consecutive measurements.

    :math:`\max_t \bigl( \max_{t - \text{window} < s \le t} v_s - v_t \bigr)`, for instance of a ``Series``' values.

    Args:
        values: measurements in order; NaN ones are passed over.
        window: measurements looked at together, at least 2.

    Returns:
        0-dim float64, ``>= 0``, in units of the values; NaN without two measurements.

    Raises:
        InputError: a window of fewer than two.

    >>> largest_drop([3.0, 5.0, 4.0, 4.5, 2.0], window=3).item()
    2.5
    """
    if window < 2:
        raise InputError(f"a drop needs a window of at least 2 measurements; got {window}")
    series = torch.as_tensor(values, dtype=torch.float64)
    series = series[~series.isnan()]
    if len(series) < 2:
        return series.new_tensor(torch.nan)
    padded = torch.cat([series.new_full((window - 1,), -torch.inf), series])
    return (padded.unfold(0, window, 1).amax(dim=1) - series).amax()


def _alignment(one: Spectrum, other: Spectrum) -> Tensor:
    x, y = one.matrix, other.matrix
    if len(x) != len(y):
        raise InputError(f"CKA compares the same points twice; got {len(x)} points and {len(y)}")
    of_points = len(x) <= min(one.units, other.units)  # both Gram matrices are Q x Q
    shared = (one.gram * other.gram).sum() if of_points else (x.T @ y).square().sum()
    norm = torch.linalg.vector_norm  # X^T X and X X^T have the same norm
    alignment: Tensor = shared / (norm(one.gram) * norm(other.gram))
    return alignment.clamp(0, 1)
