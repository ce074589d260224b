"""Medians, slopes and scatters that one outlier does not move, and how far chance goes."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri_exp  # type: ignore[import-untyped]

GAUSSIAN_MAD = 1.4826
"""A median absolute deviation times this estimates the standard deviation of a Gaussian."""


def median(values: Sequence[float]) -> float:
    """Median; NaN of nothing. Faster than NumPy's for the few numbers of a window."""
    ordered, count = sorted(values), len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2 if count else math.nan


def pair_slopes(window: Sequence[float]) -> list[float]:
    """Slopes between all pairs of ``w`` levels, per measurement: ``w (w - 1) / 2`` of them.

    Their median is the slope of Theil and Sen; the sum of their signs is Kendall's S against time.
    """
    levels = np.asarray(window)
    first, second, apart = _pairs(len(window))
    slopes: list[float] = ((levels[second] - levels[first]) / apart).tolist()
    return slopes


@functools.lru_cache(maxsize=128)
def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Places of both levels of each pair, and how far apart they are."""
    first, second = np.triu_indices(count, k=1)
    return first, second, second - first


@functools.cache
def sigmas_of(sigmas: float, chances: float) -> float:
    """Standard errors that are exceeded in one of ``chances`` trials no more often than ``sigmas`` in a single one.

    Bonferroni's correction for Gaussian noise; ``chances`` need not be whole. ``sigmas`` of 0 stay 0: no limit.

    >>> [round(sigmas_of(sigmas, 4), 2) for sigmas in (0, 2, 3)]
    [0, 2.53, 3.4]
    """
    return -float(ndtri_exp(log_ndtr(-sigmas) - math.log(chances))) if sigmas and chances > 1 else sigmas


def scatter(levels: Sequence[float], lag: int = 1, *, recent: bool = False) -> float:
    """Standard deviation of a level about its mean, from differences ``lag`` apart; 0 if there are too few.

    Args:
        levels: in their order.
        lag: how far apart the levels of a difference are.
        recent: of the later half of the differences, if less; enlarged by ``1 + 1 / sqrt(k)`` for ``k`` of them.

    >>> rising = [0.0, 1.0, 1.5, 1.75, 1.76, 1.75, 1.76]
    >>> round(scatter(rising), 2), round(scatter(rising, recent=True), 2)
    (0.14, 0.02)
    """
    differences = list(map(abs, map(operator.sub, levels[lag:], levels)))
    if len(differences) < 2:
        return 0.0
    whole = _deviation(differences)
    later = differences[len(differences) // 2 :]
    return min(whole, (1 + 1 / math.sqrt(len(later))) * _deviation(later)) if recent and len(later) > 1 else whole


def _deviation(differences: Sequence[float]) -> float:
    return GAUSSIAN_MAD * median(differences) / math.sqrt(2)
