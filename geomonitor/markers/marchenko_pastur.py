r"""Markers that compare the eigenvalues of the features with those of pure noise: the law of Marchenko and Pastur.

The covariance of ``n`` points of independent entries of variance 1 in ``N`` units has eigenvalues between
:math:`a = (1 - \sqrt q)^2` and :math:`b = (1 + \sqrt q)^2`, :math:`q = N / n`. For :math:`q \le 1` their density is
:math:`\sqrt{(b - x)(x - a)} / (2 \pi q x)`. Written in the angle :math:`\theta \in [0, \pi]` of :math:`x = 1 + q -
2\sqrt q\cos\theta`, distribution function and first moment have closed forms.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from geomonitor.markers.singular_values import Spectrum

BISECTIONS = 60
"""Halvings of the angle when a quantile is looked for: more than the digits of float64 are."""


def spectral_outliers(features: Tensor) -> Tensor:
    r"""Number of eigenvalues of the covariance above what noise of the same total variance can give.

    :math:`\lambda_i > \sigma^2 (1 + \sqrt{N / Q})^2` (Marchenko-Pastur edge), with :math:`\sigma^2` the mean
    eigenvalue: the variance an entry has. Signals also raise it, so that the count errs on the low side.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64, a whole number; NaN if all points are equal.

    Source: Marchenko and Pastur 1967; Baik, Ben Arous, Peche 2005.

    >>> spike = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    >>> spike[:, 0] *= 10
    >>> spectral_outliers(spike).item()
    1.0
    """
    return outliers_of(Spectrum.of(features))


def variance_above_edge(features: Tensor) -> Tensor:
    r"""Share of the variance that the eigenvalues bear which :func:`spectral_outliers` counts.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[0, 1]``, near 0 for noise; NaN if all points are equal.

    Source: Marchenko and Pastur 1967; the edge equals the one of :func:`spectral_outliers`.

    >>> spike = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    >>> spike[:, 0] *= 10  # 100 of 119, by chance somewhat more
    >>> round(variance_above_edge(spike).item(), 2)
    0.84
    """
    return variance_above_edge_of(Spectrum.of(features))


def mp_distance(features: Tensor) -> Tensor:
    r"""Wasserstein distance of the eigenvalues, in units of their mean, from the law of Marchenko and Pastur.

    :math:`\int_0^1 |F^{-1}(u) - G^{-1}(u)|\,du`, ``F`` the distribution of the eigenvalues over their mean, ``G`` the
    law for ``Q - 1`` points (the mean takes one) in ``N`` units. With more units than that, the ``Q - 1`` eigenvalues
    that are not zero by necessity are compared with the law of ``N`` points in ``Q - 1`` units.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64, at least 0 and below 2; NaN if all points are equal.

    Source: Marchenko and Pastur 1967; as a description of representations, EigenTrack, arXiv:2509.15735, with a
    divergence in place of this distance: it depends on bins.

    >>> mp_distance(torch.randn(400, 100, generator=torch.Generator().manual_seed(0))).item() < 0.02
    True
    """
    return mp_distance_of(Spectrum.of(features))


def outliers_of(spectrum: Spectrum) -> Tensor:
    """:func:`spectral_outliers` of a spectrum."""
    eigenvalues, edge = _with_edge(spectrum)
    return torch.where(edge.isnan(), torch.nan, (eigenvalues > edge).sum().to(torch.float64))


def variance_above_edge_of(spectrum: Spectrum) -> Tensor:
    """:func:`variance_above_edge` of a spectrum."""
    eigenvalues, edge = _with_edge(spectrum)
    above: Tensor = torch.where(eigenvalues > edge, eigenvalues, 0.0).sum() / eigenvalues.sum()
    return above


def _with_edge(spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """Eigenvalues in units of the largest, and the edge in these units; NaN if all points are equal."""
    eigenvalues = spectrum.eigenvalues / spectrum.eigenvalues.amax()
    return eigenvalues, eigenvalues.sum() / spectrum.units * (1 + (spectrum.units / spectrum.points) ** 0.5) ** 2


def mp_distance_of(spectrum: Spectrum) -> Tensor:
    """:func:`mp_distance` of a spectrum."""
    free = spectrum.points - 1
    count = min(free, spectrum.units)
    if not count:
        return spectrum.eigenvalues.new_tensor(torch.nan)
    values = spectrum.eigenvalues[:count].flip(0)
    values = values / values.mean()
    r = math.sqrt(count / max(free, spectrum.units))
    shares = torch.arange(count + 1, dtype=torch.float64, device=values.device) / count
    angles = torch.tensor(_quantile_angles(count, r), dtype=torch.float64, device=values.device)
    # Within its share of the distribution an eigenvalue lies above the law's quantiles up to the angle ``own``.
    cosines = ((1 + r**2 - values) / (2 * r)).clamp(-1, 1)
    own = torch.minimum(torch.maximum(torch.acos(cosines), angles[:-1]), angles[1:])
    below, above = _distribution(own, r) - shares[:-1], shares[1:] - _distribution(own, r)
    moment, moments = _first_moment(own), _first_moment(angles)
    return (values * (below - above) - (moment - moments[:-1]) + (moments[1:] - moment)).sum()


def _distribution(angle: Tensor, r: float) -> Tensor:
    r"""Distribution function of the law at :math:`1 + r^2 - 2 r \cos\theta`, :math:`r = \sqrt q \le 1`.

    The density in the angle is :math:`2\sin^2\theta / (\pi (1 + r^2 - 2 r\cos\theta))`, integrated term by term of its
    Fourier series, :math:`\sum_k r^k \sin(k\theta) / k = \arg(1 - r e^{-i\theta})`.
    """
    sine = r * angle.sin()
    series = torch.atan2(sine, 1 - r * angle.cos())
    return (angle + sine - (1 - r**2) / r**2 * (series - sine)) / math.pi


def _first_moment(angle: Tensor) -> Tensor:
    """Mean of the law's values up to an angle, each weighted by its density; 1 at pi."""
    return (angle - angle.sin() * angle.cos()) / math.pi


@functools.lru_cache(maxsize=32)  # the same at all measurements of a run
def _quantile_angles(count: int, r: float) -> list[float]:
    """Angles at which the distribution function is ``0, 1 / count, ..., 1``, by bisection."""
    shares = torch.arange(count + 1, dtype=torch.float64, device="cpu") / count
    low, high = torch.zeros_like(shares), torch.full_like(shares, math.pi)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        under = _distribution(middle, r) < shares
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    angles: list[float] = ((low + high) / 2).tolist()
    return angles
