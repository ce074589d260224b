r"""Markers of the spectrum of the features: how many directions they use, and how evenly.

All are functions of the singular values :math:`s_i` of the centred features, or (RankMe, stable rank) of the features
as they are; :math:`\lambda_i = s_i^2 / Q` are the eigenvalues of the covariance. One spectrum serves them all.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import GeomonitorWarning
from geomonitor.markers.inputs import feature_matrix
from geomonitor.markers.moments import Moments, add_points, empty_moments

PAPER_RANK_TOLERANCE = 1e-3
"""Numerical rank counts singular values down to this share of the largest (Chou et al. 2026, appendix)."""

RANKME_EPSILON = 1e-7
"""Added to each normalised singular value, as in Garrido et al. 2023, eq. 1: keeps the logarithm finite."""

CENTERING_ROUNDING = 8 * torch.finfo(torch.float64).eps
"""Centred features below this share of the raw ones are the rounding of the mean: they stand for exact zeros."""


class Spectrum(NamedTuple):
    """Singular values of a feature matrix ``(Q, N)``, descending, float64, ``min(Q, N)`` of them."""

    centered: Tensor
    """of the features less their mean"""
    raw: Tensor
    """of the features as they are"""


def spectrum_of(moments: Moments) -> Spectrum:
    """The spectrum of all points in ``moments`` (one group)."""
    count = moments.counts.sum()
    mean_row = count.sqrt() * moments.means
    kept = min(int(count), moments.factor.shape[1])
    raw = _singular_values(torch.cat([moments.factor, mean_row]))[:kept]
    centered = _singular_values(moments.factor)[:kept]
    rounding = CENTERING_ROUNDING * raw.amax()
    return Spectrum(torch.where(centered > rounding, centered, 0.0), raw)


def feature_spectrum(features: Tensor) -> Spectrum:
    """Singular values of a feature matrix, centred and raw.

    Args:
        features: ``(Q, N)``, one point a row; any real dtype.

    Returns:
        ``Spectrum(centered, raw)``.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.
    """
    x = feature_matrix(features)
    everyone = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return spectrum_of(add_points(empty_moments(1, x), x, everyone))


def participation_ratio(features: Tensor) -> Tensor:
    r"""Participation ratio :math:`(\sum\lambda)^2 / \sum\lambda^2` of the covariance: directions that carry variance.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[1, min(Q - 1, N)]``; NaN where all points are equal.

    Source: Gao et al. 2017; Chou et al. 2026.

    >>> participation_ratio(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).item()
    2.0
    """
    return _participation_ratio(feature_spectrum(features))


def numerical_rank(features: Tensor, *, tolerance: float = PAPER_RANK_TOLERANCE) -> Tensor:
    r"""Number of singular values of the centred features with :math:`s_i \ge \text{tolerance}\cdot s_1`.

    Args:
        features: ``(Q, N)``.
        tolerance: share of the largest singular value, in ``(0, 1)``.

    Returns:
        0-dim float64, a whole number in ``[0, min(Q - 1, N)]``; 0 where all points are equal (the rank is 0 then).

    Source: Masarczyk et al. 2023 (tunnel effect); Chou et al. 2026 with 1e-3.

    >>> numerical_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1e-9]])).item()
    1.0
    """
    return _numerical_rank(feature_spectrum(features), tolerance)


def effective_rank(features: Tensor) -> Tensor:
    r"""Effective rank :math:`\exp(-\sum p\log p)`, :math:`p = \lambda / \sum\lambda`, of the covariance.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[1, min(Q - 1, N)]``; NaN where all points are equal.

    Source: Roy and Vetterli 2007, on eigenvalues of the covariance as in Del Giudice 2021.

    >>> round(effective_rank(torch.eye(4)).item(), 6)  # three equal eigenvalues
    3.0
    """
    return _effective_rank(feature_spectrum(features))


def stable_rank(features: Tensor) -> Tensor:
    r"""Stable rank :math:`\|Z\|_F^2 / s_1^2` of the features as they are (not centred).

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[1, min(Q, N)]``; NaN where all features are zero.

    Source: Rudelson and Vershynin 2007.

    >>> round(stable_rank(torch.eye(4)).item(), 6)
    4.0
    """
    return _stable_rank(feature_spectrum(features))


def rankme(features: Tensor) -> Tensor:
    r"""RankMe :math:`\exp(-\sum p\log p)`, :math:`p = s / \|s\|_1 + 10^{-7}`, singular values not centred.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[1, min(Q, N)]`` up to the 1e-7; NaN where all features are zero.

    Source: Garrido et al. 2023, arXiv:2210.02885, eq. 1.

    >>> round(rankme(torch.eye(4)).item(), 4)
    4.0
    """
    return _rankme(feature_spectrum(features))


def spectrum_markers(spectrum: Spectrum) -> dict[str, Tensor]:
    """Every marker of this file from one spectrum, by name, 0-dim float64 each."""
    return {
        "participation_ratio": _participation_ratio(spectrum),
        "numerical_rank": _numerical_rank(spectrum, PAPER_RANK_TOLERANCE),
        "effective_rank": _effective_rank(spectrum),
        "stable_rank": _stable_rank(spectrum),
        "rankme": _rankme(spectrum),
    }


def _participation_ratio(spectrum: Spectrum) -> Tensor:
    return 1 / _normalized(_relative(spectrum.centered).square()).square().sum()


def _numerical_rank(spectrum: Spectrum, tolerance: float) -> Tensor:
    s = spectrum.centered
    return ((s >= tolerance * s.amax()) & (s > 0)).sum().to(torch.float64)


def _effective_rank(spectrum: Spectrum) -> Tensor:
    return _exponential_entropy(_normalized(_relative(spectrum.centered).square()))


def _stable_rank(spectrum: Spectrum) -> Tensor:
    return _relative(spectrum.raw).square().sum()


def _rankme(spectrum: Spectrum) -> Tensor:
    return _exponential_entropy(_normalized(spectrum.raw) + RANKME_EPSILON)


def _exponential_entropy(shares: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def _relative(singular_values: Tensor) -> Tensor:
    return singular_values / singular_values.amax()  # 0 / 0 is the NaN that "undefined" is; squares cannot overflow


def _normalized(values: Tensor) -> Tensor:
    return values / values.sum()


def _singular_values(matrix: Tensor) -> Tensor:
    if not matrix.numel():
        return matrix.new_zeros(0)
    values: Tensor
    try:
        values = torch.linalg.svdvals(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # seen with the GPU's solver; LAPACK's converges
        told = "singular values did not converge on the GPU; computed on the CPU"
        warnings.warn(told, GeomonitorWarning, stacklevel=2)
        values = torch.linalg.svdvals(matrix.cpu()).to(matrix.device)
    return values
