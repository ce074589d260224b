"""Medians, slopes and scatters that one outlier does not move, and how far chance goes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri_exp  # type: ignore[import-untyped]

GAUSSIAN_MAD = 1.4826
"""A median absolute deviation times this estimates the standard deviation of a Gaussian."""


def median(values: Sequence[float]) -> float:
    """Median; NaN of nothing. Faster than NumPy's on the few readings of a window."""
    ordered, count = sorted(values), len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2 if count else math.nan


def theil_sen(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of the slopes between all pairs of readings of each window ``(..., w)``, per reading."""
    first, second, apart = _pairs(windows.shape[-1])
    return np.asarray(np.median((windows[..., second] - windows[..., first]) / apart, axis=-1))


@functools.lru_cache(maxsize=128)
def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Places of both readings of each pair, and how far apart they are."""
    first, second = np.triu_indices(count, k=1)
    return first, second, second - first


@functools.cache
def sigmas_of(sigmas: float, chances: float) -> float:
    """Standard errors that are exceeded in one of so many chances no more often than ``sigmas`` in a single one.

    Bonferroni's correction for Gaussian noise; ``chances`` need not be whole. ``sigmas`` of 0 stay 0: no limit.

    >>> [round(sigmas_of(sigmas, 4), 2) for sigmas in (0, 2, 3)]
    [0, 2.53, 3.4]
    """
    return -float(ndtri_exp(log_ndtr(-sigmas) - math.log(chances))) if sigmas and chances > 1 else sigmas


def scatter(levels: Sequence[float], lag: int = 1) -> float:
    """Standard deviation of a reading about its level, from differences ``lag`` apart; 0 where there are too few."""
    differences = [abs(after - before) for before, after in zip(levels, levels[lag:], strict=False)]
    return GAUSSIAN_MAD * median(differences) / math.sqrt(2) if len(differences) > 1 else 0.0
