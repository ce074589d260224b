r"""Markers of the spectrum of the features: how many directions they use, and how evenly.

All are functions of the singular values :math:`s_i` of the centred features, or (RankMe, stable rank) of the features
as they are; :math:`\lambda_i = s_i^2 / Q` are the eigenvalues of the covariance. :mod:`.singular_values` documents
which decomposition is accurate enough for which marker. What compares them with noise is in :mod:`.marchenko_pastur`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.markers.marchenko_pastur import mp_distance_of, outliers_of, variance_above_edge_of
from geomonitor.markers.singular_values import Spectrum

PAPER_RANK_TOLERANCE = 1e-3
"""Numerical rank counts singular values down to this share of the largest (Chou et al. 2026, appendix)."""

RANKME_EPSILON = 1e-7
"""Added to each normalised singular value, as in Garrido et al. 2023, eq. 1: keeps the logarithm finite."""

DECAY_RANKS = (11, 100)
"""First and last rank of the eigenvalues to which the power law is fitted (Ghosh et al. 2022)."""
FEWEST_DECAY_RANKS = 3
"""Two points lie on a line whatever the spectrum is; with fewer than three, slope and R^2 have no meaning."""


def participation_ratio(features: Tensor) -> Tensor:
    r"""Participation ratio :math:`(\sum\lambda)^2 / \sum\lambda^2` of the covariance: directions that carry variance.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[1, min(Q - 1, N)]``; NaN if all points are equal.

    Source: Gao et al. 2017; Chou et al. 2026.

    >>> participation_ratio(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).item()
    2.0
    """
    return _participation_ratio(Spectrum.of(features))


def numerical_rank(features: Tensor, *, tolerance: float = PAPER_RANK_TOLERANCE) -> Tensor:
    r"""Number of singular values of the centred features with :math:`s_i \ge \text{tolerance}\cdot s_1`.

    Args:
        features: ``(Q, N)``.
        tolerance: share of the largest singular value, in ``(0, 1)``.

    Returns:
        0-dim float64, a whole number in ``[0, min(Q - 1, N)]``; 0 if all points are equal (the rank is 0 then).

    Source: Masarczyk et al. 2023 (tunnel effect); Chou et al. 2026 with 1e-3.

    >>> numerical_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1e-9]])).item()
    1.0
    """
    return _rank(Spectrum.of(features).centered, _options.OPEN_SHARE.number("tolerance", tolerance))


def effective_rank(features: Tensor) -> Tensor:
    r"""Effective rank :math:`\exp(-\sum p\log p)`, :math:`p = \lambda / \sum\lambda`, of the covariance.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[1, min(Q - 1, N)]``; NaN if all points are equal.

    Source: Roy and Vetterli 2007, on eigenvalues of the covariance as in Del Giudice 2021.

    >>> round(effective_rank(torch.eye(4)).item(), 6)  # three equal eigenvalues
    3.0
    """
    return _effective_rank(Spectrum.of(features))


def stable_rank(features: Tensor) -> Tensor:
    r"""Stable rank :math:`\|Z\|_F^2 / s_1^2` of the features as they are (not centred).

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[1, min(Q, N)]``; NaN if all features are zero.

    Source: Rudelson and Vershynin 2007.

    >>> round(stable_rank(torch.eye(4)).item(), 6)
    4.0
    """
    return _stable_rank(Spectrum.of(features))


def rankme(features: Tensor) -> Tensor:
    r"""RankMe :math:`\exp(-\sum p\log p)`, :math:`p = s / \|s\|_1 + 10^{-7}`, singular values not centred.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[1, min(Q, N)]`` up to the 1e-7; NaN if all features are zero.

    Source: Garrido et al. 2023, arXiv:2210.02885, eq. 1.

    >>> round(rankme(torch.eye(4)).item(), 4)
    4.0
    """
    return _rankme(Spectrum.of(features))


class SpectralDecay(NamedTuple):
    """A power law fitted to a spectrum, 0-dim float64 tensors."""

    exponent: Tensor
    """alpha in ``eigenvalue ~ rank ** -alpha``"""
    r2: Tensor
    """share of the variance of the log eigenvalues that the line explains, at most 1"""


def spectral_decay(features: Tensor) -> SpectralDecay:
    r"""Exponent alpha of a power law :math:`\lambda_i \propto i^{-\alpha}`, and how well it fits.

    Weighted least squares of :math:`\log\lambda_i` on :math:`\log i` with weights :math:`1/i` (ranks are dense at
    large logarithms), over ranks 11 to 100 as far as the eigenvalues are positive.

    Args:
        features: ``(Q, N)``.

    Returns:
        ``SpectralDecay(exponent, r2)``; NaN if fewer than three eigenvalues are left (Q or N below 14).

    Source: Agrawal et al. 2022 (alpha-ReQ), arXiv:2202.05808; ranks as geometry.md 2.

    >>> spectral_decay(torch.randn(8, 8)).exponent.item()
    nan
    """
    return _spectral_decay(Spectrum.of(features))


def top_eigenvalue_share(features: Tensor) -> Tensor:
    r"""Share :math:`\lambda_1 / \sum\lambda` of the variance that the direction of most variance bears.

    Args:
        features: ``(Q, N)``.

    Returns:
        0-dim float64 in ``[1 / min(Q - 1, N), 1]``; NaN if all points are equal.

    Source: the stable rank of the centred features (Rudelson and Vershynin 2007), inverted.

    >>> round(top_eigenvalue_share(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).item(), 6)
    0.8
    """
    return _top_eigenvalue_share(Spectrum.of(features))


def _participation_ratio(spectrum: Spectrum) -> Tensor:
    # The sum of the eigenvalues is the trace of the Gram matrix, the sum of their squares its squared norm.
    return spectrum.gram.trace().square() / spectrum.gram.square().sum()


def _numerical_rank(spectrum: Spectrum) -> Tensor:
    return _rank(spectrum.eigenvalues.sqrt(), PAPER_RANK_TOLERANCE)


def _rank(singular_values: Tensor, tolerance: float) -> Tensor:
    s = singular_values
    return ((s >= tolerance * s.amax()) & (s > 0)).sum().to(torch.float64)


def _effective_rank(spectrum: Spectrum) -> Tensor:
    return _exponential_entropy(_normalized(spectrum.eigenvalues))


def _stable_rank(spectrum: Spectrum) -> Tensor:
    return _relative(spectrum.raw).square().sum()


def _rankme(spectrum: Spectrum) -> Tensor:
    return _exponential_entropy(_normalized(spectrum.raw) + RANKME_EPSILON)


def _spectral_decay(spectrum: Spectrum) -> SpectralDecay:
    first, last = DECAY_RANKS
    s = spectrum.centered
    # Zeros of the spectrum come out of the decomposition as rounding; they are on no power law.
    rounding = torch.finfo(torch.float64).eps * max(spectrum.points, spectrum.units)
    kept = s[first - 1 : last]
    kept = kept[kept > rounding * s.amax()]
    if len(kept) < FEWEST_DECAY_RANKS:
        undefined = s.new_tensor(torch.nan)
        return SpectralDecay(undefined, undefined)
    rank = torch.arange(first, first + len(kept), dtype=torch.float64, device=s.device)
    weight = _normalized(1 / rank)
    x, y = rank.log(), 2 * (kept / kept[0]).log()
    x, y = x - weight @ x, y - weight @ y
    slope = (weight @ (x * y)) / (weight @ x.square())
    residual = weight @ (y - slope * x).square()
    return SpectralDecay(-slope, 1 - residual / (weight @ y.square()))


def _top_eigenvalue_share(spectrum: Spectrum) -> Tensor:
    return 1 / _relative(spectrum.eigenvalues).sum()


def _exponential_entropy(shares: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def _relative(values: Tensor) -> Tensor:
    return values / values.amax()  # 0 / 0 is the NaN that "undefined" is; squares cannot overflow


def _normalized(values: Tensor) -> Tensor:
    return values / values.sum()


SPECTRUM_FORMULAS: MappingProxyType[str, Callable[[Spectrum], Tensor]] = MappingProxyType(
    {
        "participation_ratio": _participation_ratio,
        "numerical_rank": _numerical_rank,
        "effective_rank": _effective_rank,
        "stable_rank": _stable_rank,
        "rankme": _rankme,
        "spectral_decay": lambda spectrum: _spectral_decay(spectrum).exponent,
        "spectral_decay_r2": lambda spectrum: _spectral_decay(spectrum).r2,
        "top_eigenvalue_share": _top_eigenvalue_share,
        "spectral_outliers": outliers_of,
        "variance_above_edge": variance_above_edge_of,
        "mp_distance": mp_distance_of,
    }
)
"""The formula of each marker of the spectrum, by name; 0-dim float64."""
