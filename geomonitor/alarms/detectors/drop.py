"""A drop from the recent level that is large, beyond the noise, and stays."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from geomonitor._options import (
    COUNT,
    NOT_NEGATIVE,
    OPEN_SHARE,
    Range,
    check_flag,
    check_numbers,
)
from geomonitor.alarms.detectors.baseline import continued, expected, is_settled, new_baseline, noise_is_known
from geomonitor.alarms.detectors.levels import (
    Finding,
    LevelDetector,
    Track,
    Worse,
    begun,
    check_direction,
    within_an_epoch,
)
from geomonitor.alarms.detectors.robust import sigmas_of


@dataclass(frozen=True)
class DropFromReference(LevelDetector):
    """Decline: a drop from the recent level that is large, beyond the noise, and stays.

    *Reference*: the median over the later half of the run so far (at most 40 measurements), so that one outlier does
    not move it and a slow drift is followed; with ``follow_trend`` the line through them, if it falls. It stands
    still while a decline lasts. *Warm-up* lasts until, within that half, the median of the second part no longer lies
    below that of the first by more than ``settled``, and for ``warmup_checks`` measurements at least, and as many
    epochs if there are several measurements in one (but no more than four times as many measurements). A measurement
    is low when it lies both ``drop`` (relative) and ``sigmas`` standard errors below the reference; the verdict is
    "declined" from the ``patience_checks``-th low one in a row, or from a plain one, until one is not low.

    *Noise* is the larger of the sampling error of the difference (paired, if the history has the error of each
    change: measurements of one protocol share their draws) and the scatter of the series itself, from one measurement
    to the next or from one epoch to the next, whatever is more. A marker without a sampling error is not judged before
    three measurements show its scatter.

    The defaults are for one marker that is judged alone, and for a handful to some dozens of measurements a run; where
    two families of markers have to agree, a monitor takes smaller limits (``geomonitor.alarms.panel``).

    A failed measurement (NaN) is passed over: it neither raises nor clears an alarm. So is one below 0; a fall to 0 is
    the largest there is.

    Args:
        drop: smallest relative drop that matters, in ``(0, 1)``.
        sigmas: smallest drop in standard errors of the difference. If an epoch holds several measurements, by as
            many more as make up for the more chances (2 becomes 2.5 and 3 becomes 3.4 at four an epoch).
        warmup_checks: measurements before anything is judged, and epochs, if they hold several measurements.
        patience_checks: low measurements in a row that make a decline.
        plain: a measurement below ``plain`` times both thresholds needs no second one; by default
            none is.
        settled: the early fall is over when the level falls by less than this (relative), or than its sampling error.
            Infinite: the warm-up lasts for ``warmup_checks`` measurements and no longer.
        follow_trend: expect a marker that falls to go on falling as before, so that only a faster fall is news.
        recent_noise: take the scatter of the later half if it is less than that of the run, for series that begin
            with a steep rise or fall.
        worse: direction of a decline: ``"lower"``, ``"higher"``, ``"either"``, or ``"marker"``: what the table of
            markers has for each, and a fall if it has no direction.

    >>> import numpy as np, geomonitor as gm
    >>> epochs, errors = np.arange(10), np.full(10, 0.05)
    >>> values = np.array([1.9, 2.0, 2.1, 2.0, 2.1, 2.0, 2.1, 2.0, 1.4, 1.3])
    >>> verdict = gm.DropFromReference()(gm.Series("fc", "dimension", 24 * epochs, epochs, values, errors))
    >>> verdict.declined, verdict.since_epoch, round(verdict.change, 2)
    (True, 8, -0.37)
    """

    drop: float = 0.1
    sigmas: float = 3.0
    warmup_checks: int = 6
    patience_checks: int = 2
    plain: float = math.inf
    settled: float = 0.02
    follow_trend: bool = False
    recent_noise: bool = False
    worse: Worse = "marker"

    def __post_init__(self) -> None:
        check_numbers(
            self,
            drop=OPEN_SHARE,
            sigmas=NOT_NEGATIVE,
            warmup_checks=COUNT,
            patience_checks=COUNT,
            plain=Range(1, math.inf, ends="[]"),
            settled=Range(0, math.inf, ends="(]"),
        )
        check_flag(self, "follow_trend")
        check_flag(self, "recent_noise")
        check_direction(self.worse)

    def at_once(self, warmup_checks: int | None = None) -> DropFromReference:
        """The same, with a warm-up of ``warmup_checks`` measurements (or as many as now) that nothing prolongs."""
        checks = self.warmup_checks if warmup_checks is None else warmup_checks
        return dataclasses.replace(self, warmup_checks=checks, settled=math.inf)

    @property
    def needed(self) -> int:
        """Low measurements in a row that make a decline."""
        return self.patience_checks

    def limits(self, an_epoch: int) -> tuple[float, float]:
        """``drop`` and ``sigmas`` for an epoch of ``an_epoch`` measurements."""
        return self.drop, sigmas_of(self.sigmas, an_epoch)

    def follows_trend(self, marker: str) -> bool:
        """Whether a marker is expected to go on falling as before."""
        return self.follow_trend

    def look(self, track: Track) -> tuple[Finding, dict[str, float]]:
        """What is found at the latest measurement."""
        past, found, baseline = track["past"], track["finding"], track["own"]
        if not baseline and not is_settled(past, self.warmup_checks, self.settled):
            return found, baseline
        if found["low"]:
            baseline = continued(baseline, past)
        else:
            trend = self.follows_trend(track["marker"])
            baseline = new_baseline(past, follow_trend=trend, recent_noise=self.recent_noise)
            found = begun(found, past)
        level, noise = expected(baseline, past)
        drop, sigmas = self.limits(within_an_epoch(past))
        gap, limit = level - past["levels"][-1], max(-math.log1p(-drop), sigmas * noise)
        low = found["low"] + 1 if gap > limit and noise_is_known(past, noise) else 0
        plain = low > 0 and (found["plain"] or gap > self.plain * limit)
        return {**found, "low": low, "expected": level, "noise": noise, "plain": plain}, baseline
