"""A steady fall that is steeper than before: the test of Mann and Kendall on the recent readings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geomonitor.decline import Direction, Verdict
from geomonitor.detectors.readings import (
    Worse,
    directions,
    loudest,
    median,
    readings,
    require_direction,
    scatter,
    theil_sen,
)
from geomonitor.errors import InputError
from geomonitor.records import Series


@dataclass(frozen=True)
class Trend:
    """Decline: the last ``window`` readings fall steadily, by ``drop`` in all, and more steeply than those before.

    Steadily: Kendall's S of the window lies ``sigmas`` standard deviations below 0 (Mann 1945, Econometrica 13). How
    much: the median slope of Theil and Sen over the window. More steeply: ``steeper`` times the slope of the
    readings before it; classes that form fall ever more slowly, a fault sets in.

    Args:
        window: readings of the trend, 4 or more.
        drop: smallest relative fall over the window that matters, in ``(0, 1)``.
        sigmas: significance of Kendall's S.
        steeper: least ratio to the slope before, where that one falls, too.
        patience_checks: readings in a row at which all this holds.
        worse: see :class:`DropFromReference`.
    """

    window: int = 6
    drop: float = 0.15
    sigmas: float = 2.0
    steeper: float = 2.0
    patience_checks: int = 1
    worse: Worse = "marker"

    def __post_init__(self) -> None:
        if self.window < 4 or self.patience_checks < 1:
            raise InputError(f"window counts readings, from 4, and patience_checks from 1; got {self}")
        if not 0 < self.drop < 1 or self.sigmas < 0 or self.steeper < 1:
            raise InputError(f"drop must lie in (0, 1), sigmas be 0 or more, steeper 1 or more; got {self}")
        require_direction(self.worse)

    def __call__(self, series: Series) -> Verdict:
        """Judge a series by replaying it."""
        return loudest([self._judge(series, direction) for direction in directions(self.worse, series.marker)])

    def _judge(self, series: Series, direction: Direction) -> Verdict:
        seen = readings(series, direction)
        levels, width = seen.levels, self.window
        least = -math.log1p(-self.drop) / (width - 1)
        low = since = 0
        expected = noise = math.nan
        # Only the last readings matter; each window is judged on its own.
        first = max(2 * width, len(levels) - 8 * width)
        for end in range(first, len(levels) + 1):
            recent, before = levels[end - width : end], levels[end - 2 * width : end - width]
            slope, slope_before = theil_sen(recent), theil_sen(before)
            falls = (
                -slope > least and -slope > self.steeper * max(0.0, -slope_before) and kendall(recent) < -self.sigmas
            )
            if falls and not low:
                since, expected, noise = end - width, median(before), scatter(levels[end - 2 * width : end])
            low = low + 1 if falls else 0
        return seen.verdict(count=low, needed=self.patience_checks, since=since, expected=expected, noise=noise)


def kendall(levels: list[float]) -> float:
    """Kendall's S against time in units of its standard deviation under no trend.

    >>> round(kendall([4.0, 3.0, 2.0, 1.0, 0.0]), 2)
    -2.45
    """
    values = np.asarray(levels)
    first, second = np.triu_indices(len(values), k=1)
    total = float(np.sign(values[second] - values[first]).sum())
    return total / math.sqrt(len(values) * (len(values) - 1) * (2 * len(values) + 5) / 18)
