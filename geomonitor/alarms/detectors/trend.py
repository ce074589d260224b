"""A steady fall that is steeper than before: the test of Mann and Kendall on the recent readings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomonitor.alarms.detectors.readings import Finding, Readings, Walker, Worse, require_direction
from geomonitor.alarms.detectors.robust import median, scatter, theil_sen
from geomonitor.errors import InputError


@dataclass(frozen=True)
class Trend(Walker):
    """Decline: the last ``window`` readings fall steadily, by ``drop`` in all, and more steeply than those before.

    Steadily: Kendall's S of the window lies ``sigmas`` standard deviations below 0 (Mann 1945, Econometrica 13). How
    much: the median slope of Theil and Sen over the window. More steeply: ``steeper`` times the slope of the
    readings before it; classes that form fall ever more slowly, a fault sets in. The decline lasts until the fall has
    ended and the level is back within ``drop`` of what it was.

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
    sigmas: float = 1.5
    steeper: float = 2.0
    patience_checks: int = 1
    worse: Worse = "marker"

    def __post_init__(self) -> None:
        if self.window < 4 or self.patience_checks < 1:
            raise InputError(f"window counts readings, from 4, and patience_checks from 1; got {self}")
        if not 0 < self.drop < 1 or self.sigmas < 0 or self.steeper < 1:
            raise InputError(f"drop must lie in (0, 1), sigmas be 0 or more, steeper 1 or more; got {self}")
        require_direction(self.worse)

    @property
    def needed(self) -> int:
        """Low readings in a row that make a decline."""
        return self.patience_checks

    def walk(self, seen: Readings) -> Iterator[Finding]:
        """What is found at each reading."""
        levels, width = seen.levels, self.window
        least = -math.log1p(-self.drop) / (width - 1)
        yield from (Finding(now) for now in range(min(2 * width - 1, len(levels))))
        if len(levels) < 2 * width:
            return
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(levels), width)
        slopes, kendalls = theil_sen(windows), kendall(windows)
        low = since = 0
        expected = noise = math.nan
        for start in range(width, len(windows)):
            before = max(0.0, -slopes[start - width])
            falls = -slopes[start] > max(least, self.steeper * before) and kendalls[start] < -self.sigmas
            if falls and not low:
                around = levels[start - width : start + width]
                since, expected, noise = start, median(around[:width]), scatter(around)
            still = low and expected - levels[start + width - 1] > least * (width - 1)
            low = low + 1 if falls or still else 0
            yield Finding(start + width - 1, low, since, expected, noise)


def kendall(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's S of each window ``(..., w)`` against time in units of its standard deviation under no trend.

    >>> float(kendall(np.array([4.0, 3.0, 2.0, 1.0, 0.0])).round(2))
    -2.45
    """
    count = windows.shape[-1]
    first, second = np.triu_indices(count, k=1)
    total = np.sign(windows[..., second] - windows[..., first]).sum(axis=-1)
    return np.asarray(total / math.sqrt(count * (count - 1) * (2 * count + 5) / 18))
