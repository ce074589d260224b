"""A steady fall that is steeper than before: the test of Mann and Kendall on the latest measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from geomonitor._options import COUNT, NOT_NEGATIVE, OPEN_SHARE, Range, check_numbers
from geomonitor.alarms.detectors.levels import Finding, LevelDetector, Track, Worse, begun, check_direction
from geomonitor.alarms.detectors.robust import median, pair_slopes, scatter


@dataclass(frozen=True)
class Trend(LevelDetector):
    """Decline: the last ``window`` measurements fall steadily, by ``drop`` in all, and more steeply than those before.

    Steadily: Kendall's S of the window lies ``sigmas`` standard deviations below 0 (Mann 1945, Econometrica 13). How
    much: the median slope of Theil and Sen over the window. More steeply: ``steeper`` times the slope of the
    measurements before it; classes that form fall ever more slowly, a fault sets in. The decline lasts until the fall
    has ended and the level is back within ``drop`` of what it was.

    Args:
        window: measurements of the trend, 4 or more.
        drop: smallest relative fall over the window that matters, in ``(0, 1)``.
        sigmas: significance of Kendall's S.
        steeper: least ratio to the slope before, if that one falls also.
        patience_checks: measurements in a row at which all this holds.
        worse: see :class:`DropFromReference`.
    """

    window: int = 6
    drop: float = 0.15
    sigmas: float = 1.5
    steeper: float = 2.0
    patience_checks: int = 1
    worse: Worse = "marker"

    def __post_init__(self) -> None:
        check_numbers(
            self,
            window=Range(4, ends="[)", whole=True),
            drop=OPEN_SHARE,
            sigmas=NOT_NEGATIVE,
            steeper=Range(1, ends="[)"),
            patience_checks=COUNT,
        )
        check_direction(self.worse)

    @property
    def needed(self) -> int:
        """Low measurements in a row that make a decline."""
        return self.patience_checks

    @property
    def memory(self) -> int:
        """Measurements that are kept in the state: the window, and the one before it."""
        return 2 * self.window

    def look(self, track: Track) -> tuple[Finding, dict[str, float]]:
        """What is found at the latest measurement."""
        past, found, levels = track["past"], track["finding"], track["past"]["levels"]
        if len(levels) < self.memory:
            return found, {}
        before, window = levels[: self.window], pair_slopes(levels[self.window :])
        fall, least = -median(window), -math.log1p(-self.drop)
        steeper = fall > max(least / (self.window - 1), self.steeper * -median(pair_slopes(before)))
        falls = steeper and kendall(window, self.window) < -self.sigmas
        if falls and not found["low"]:
            found = begun(found, past, ago=self.window - 1)
            found = {**found, "expected": median(before), "noise": scatter(levels)}
        still = found["low"] > 0 and found["expected"] - levels[-1] > least
        return {**found, "low": found["low"] + 1 if falls or still else 0}, {}


def kendall(slopes: Sequence[float], count: int) -> float:
    """Kendall's S of ``count`` levels against time in units of its standard deviation under no trend.

    Args:
        slopes: between all pairs of levels, which have the signs of the differences.
        count: of levels.

    >>> round(kendall(pair_slopes([4.0, 3.0, 2.0, 1.0, 0.0]), 5), 2)
    -2.45
    """
    total = sum((slope > 0) - (slope < 0) for slope in slopes)
    return total / math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
