"""What all detectors share: the finite readings of a series, their noise, and what the past lets one expect.

Readings are taken as logarithms, turned so that a decline is a fall: then a drop of 15 % is the same size anywhere, and
a rise is judged like a fall.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor.alarms.detectors.robust import median, scatter, theil_sen
from geomonitor.alarms.verdict import Direction, Verdict
from geomonitor.errors import InputError
from geomonitor.history.records import Series
from geomonitor.markers import COUNTS, MARKERS

MEDIAN_ERROR = 1.2533
"""The standard error of a median in units of that of a mean, of Gaussians."""
WINDOW = 40
"""Readings that a baseline looks back at most: a long run is judged by its recent past, in constant time a reading."""

READINGS_AN_EPOCH = 4
"""Where an epoch holds more readings than this, it is taken to hold so many."""

Worse = Literal["lower", "higher", "either", "marker"]


class Finding(NamedTuple):
    """What a detector finds at a reading."""

    now: int = -1
    """which reading; -1: there is none"""
    low: int = 0
    """readings in decline up to this one, in a row"""
    since: int = 0
    """the first of them"""
    expected: float = math.nan
    noise: float = math.nan
    """relative; NaN, like ``expected``, during warm-up"""
    plain: bool = False
    """one of these readings was so low that it needs no second one"""

    def share(self, needed: int) -> float:
        """Of a vote, in [0, 1]: 1 is a decline; less while there are fewer low readings in a row than ``needed``."""
        return 1.0 if self.plain else min(self.low / needed, 1.0)


class Readings(NamedTuple):
    """The readings of a series that can be judged: lists, for the detectors walk through them one by one."""

    series: Series
    direction: Direction
    places: list[int]
    """where in the series each stands"""
    epochs: list[float]
    """of training; NaN where not known"""
    levels: list[float]
    """logarithm of the value, its sign turned where a rise is the decline; of 0 that of the smallest number"""
    errors: list[float]
    """relative standard error of each; 0 where there is none, half a unit of a count"""
    change_errors: list[float]
    """relative standard error of the change since the reading before, with common draws; infinite where unknown"""

    def sampling_error(self, then: int, now: int) -> float:
        """An upper bound of the standard error of ``levels[now] - levels[then]``.

        Errors of common draws do not add up to more than independent ones, nor to more than those of the steps between.
        """
        independent = math.hypot(self.errors[then], self.errors[now])
        steps = 0.0
        for change_error in reversed(self.change_errors[then + 1 : now + 1]):
            steps += change_error
            if steps >= independent:
                return independent
        return steps

    def within_an_epoch(self, now: int) -> int:
        """How many readings an epoch holds, by the latest ones: 1 where epochs are not known, 4 at most.

        Readings of one epoch share the ups and downs of the training: their differences say little of how far they
        wander from one epoch to the next. And the more there are, the more often one is low by chance.
        """
        latest = self.epochs[max(0, now + 1 - 2 * READINGS_AN_EPOCH) : now + 1]
        held = Counter(epoch for epoch in latest if math.isfinite(epoch))
        return min(max(held.values(), default=1), READINGS_AN_EPOCH)

    def verdict(self, finding: Finding, needed: int) -> Verdict:
        """The finding on a reading in words of the series; ``needed`` low readings in a row make a decline."""
        sign, low = _sign(self.direction), finding.low > 0
        place = self.places[finding.since] if low else None
        epoch = math.nan if place is None else self.series.epochs[place]
        reference = math.exp(sign * finding.expected) if math.isfinite(finding.expected) else math.nan
        value = float(self.series.values[self.places[finding.now]]) if finding.now >= 0 else math.nan
        return Verdict(
            declined=finding.share(needed) >= 1,
            layer=self.series.layer,
            marker=self.series.marker,
            value=value,
            reference=reference,
            standard_error=finding.noise * math.sqrt(reference * value),  # so that sigmas are those of the logarithms
            since_step=None if place is None else int(self.series.steps[place]),
            since_epoch=int(epoch) if math.isfinite(epoch) else None,
            checks=finding.low,
            needed=needed,
            direction=self.direction,
        )


class Baseline(NamedTuple):
    """What the readings before ``end`` let one expect of the next ones: a line, and the noise about it."""

    level: float
    slope: float
    """per reading; never above 0: that the past went up is no reason to expect more"""
    centre: float
    """where the line has ``level``"""
    end: int
    scatter: float
    """standard deviation of a reading about the line, as it changes from one reading to the next or from one epoch to
    the next, whatever is more; 0 where there are too few readings to tell"""

    def at(self, now: int) -> float:
        """The expected reading: the line goes on for as long again as it was seen, not for ever."""
        return self.level + self.slope * (min(now, self.end + (self.end - self.centre)) - self.centre)


def readings(series: Series, direction: Direction) -> Readings:
    """The readings of a series that can be judged: finite and positive, and 0 where a fall is the decline.

    A network whose units are all dead has rank 0 and norm 0: nothing can fall further.
    """
    values = series.values
    (places,) = np.nonzero(np.isfinite(values) & ((values > 0) | ((values == 0) & (direction == "lower"))))
    zero = values[places] == 0
    kept = np.where(zero, np.finfo(np.float64).tiny, values[places])
    unknown = np.full(len(values), math.nan)
    with np.errstate(over="ignore"):  # a tiny value of a huge error has an infinite relative one
        errors = np.abs(series.standard_errors[places] / kept)
        changes = np.abs((unknown if series.change_errors is None else series.change_errors)[places] / kept)
    if series.marker in COUNTS:  # one more or less is no news
        errors = np.maximum(np.nan_to_num(errors, nan=0.0), 0.5 / kept)
    errors[zero] = 0.0  # relative to 0 an error has no size
    return Readings(
        series,
        direction,
        places.tolist(),
        series.epochs[places].astype(np.float64).tolist(),
        (_sign(direction) * np.log(kept)).tolist(),
        np.nan_to_num(errors, nan=0.0, posinf=math.inf).tolist(),
        np.nan_to_num(changes, nan=math.inf, posinf=math.inf).tolist(),
    )


def baseline(seen: Readings, now: int, *, follow_trend: bool) -> Baseline:
    """Baseline from the later half of what comes before ``now``, at most ``WINDOW`` readings.

    The level is a median and the slope a median of slopes (Theil and Sen), so that one outlier moves neither. The
    scatter is that of all the readings that the window holds: of a few it is mostly chance.
    """
    start = recent_half(now)
    recent, window = seen.levels[start:now], seen.levels[max(0, now - WINDOW) : now]
    slope = min(0.0, float(theil_sen(np.asarray(recent)))) if follow_trend and len(recent) > 2 else 0.0
    centre = (start + now - 1) / 2
    level = median([level - slope * (start + n - centre) for n, level in enumerate(recent)])
    return Baseline(level, slope, centre, now, max(scatter(window), scatter(window, seen.within_an_epoch(now))))


def recent_half(now: int) -> int:
    """Start of the later half of the readings before ``now``, at most ``WINDOW`` of them."""
    return max(now // 2, now - WINDOW)


def end_of_warm_up(seen: Readings, checks: int, settled: float) -> int:
    """The first reading to be judged; as many as there are where the warm-up lasts to the end.

    It lasts for ``checks`` readings, and as many epochs where an epoch holds several of them (but no more than
    ``READINGS_AN_EPOCH`` times as many readings). It is over once, within the recent half, the median of the second
    part lies below that of the first by less than ``settled``, or by less than the sampling error of such a difference.

    Args:
        seen: the readings.
        checks: readings that belong to the warm-up in any case.
        settled: relative fall of the level.
    """
    levels = seen.levels
    for now in range(checks, len(levels)):
        if now < READINGS_AN_EPOCH * checks and seen.epochs[now] - seen.epochs[0] < checks:
            continue
        start = recent_half(now)
        recent = levels[start : now + 1]
        middle = len(recent) // 2
        error = MEDIAN_ERROR * seen.sampling_error(start, now) / math.sqrt(max(middle, 1))
        if median(recent[:middle]) - median(recent[middle:]) < max(settled, error):
            return now
    return len(levels)


class Walker(ABC):
    """A detector that walks once through a series; what it finds at a reading depends on those before alone."""

    worse: Worse

    @property
    @abstractmethod
    def needed(self) -> int:
        """Low readings in a row that make a decline."""

    @abstractmethod
    def walk(self, seen: Readings) -> Iterator[Finding]:
        """What is found at each reading, in order."""

    def __call__(self, series: Series) -> Verdict:
        """The verdict after the last measurement."""
        verdicts = []
        for seen in self._both(series):
            finding = Finding()
            for finding in self.walk(seen):  # noqa: B007 - the last one counts
                pass
            verdicts.append(seen.verdict(finding, self.needed))
        return _loudest(verdicts)

    def declines(self, series: Series) -> NDArray[np.bool_]:
        """Whether the verdict was "declined" after each measurement, in one walk; ``(n,)``."""
        return self.shares(series) >= 1

    def shares(self, series: Series) -> NDArray[np.float64]:
        """``Verdict.share`` after each measurement, in one walk; ``(n,)``."""
        shares = np.zeros(len(series.values))
        for seen in self._both(series):
            found, judged = np.zeros(len(shares)), np.zeros(len(shares), dtype=int)
            found[seen.places] = [finding.share(self.needed) for finding in self.walk(seen)]
            judged[seen.places] = seen.places
            shares = np.maximum(shares, found[np.maximum.accumulate(judged)])  # a failed measurement changes nothing
        return shares

    def _both(self, series: Series) -> list[Readings]:
        if self.worse == "either":
            return [readings(series, "lower"), readings(series, "higher")]
        if self.worse == "marker":
            row = MARKERS.get(series.marker)
            return [readings(series, (row and row.worse) or "lower")]
        return [readings(series, self.worse)]


def _loudest(verdicts: Sequence[Verdict]) -> Verdict:
    """Of the verdicts on both directions the one in decline, else the one that is nearer to it."""
    return max(verdicts, key=lambda v: (v.declined, v.checks))


def require_direction(worse: str) -> None:
    """Refuse what is no direction.

    Raises:
        InputError: something else.
    """
    if worse not in ("lower", "higher", "either", "marker"):
        raise InputError(f'worse must be "lower", "higher", "either" or "marker"; got {worse!r}')


def _sign(direction: Direction) -> float:
    return 1.0 if direction == "lower" else -1.0
