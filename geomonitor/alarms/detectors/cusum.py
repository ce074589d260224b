"""A fall that adds up: Page's cumulative sum of what lies below the expected level by more than an allowance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from geomonitor.alarms.detectors.readings import (
    Baseline,
    Finding,
    Readings,
    Walker,
    Worse,
    baseline,
    end_of_warm_up,
    recent_half,
    require_direction,
)
from geomonitor.errors import InputError


@dataclass(frozen=True)
class Cusum(Walker):
    """Decline: readings below the expected level that add up, although each alone may be within the noise.

    The one-sided cumulative sum of Page 1954 (Biometrika 41), with the level, the warm-up and the noise of
    :class:`DropFromReference`: ``S <- max(0, S + gap / noise - allowance)``, where ``gap`` is how far (in relative
    terms) a reading lies below the reference, which stands still while ``S > 0``. Declined while ``S > threshold`` and
    the gap is at least ``drop``. One reading adds at most ``threshold / 2``, so that an outlier is no decline, and
    ``S`` never exceeds ``2 threshold``, so that a recovery ends the alarm.

    Args:
        threshold: sum of standard errors that makes a decline.
        allowance: standard errors by which a reading may lie low without adding to the sum.
        drop: smallest relative drop that matters, in ``(0, 1)``.
        least_noise: relative noise to reckon with at least: a short quiet stretch is no proof of a quiet run.
        warmup_checks: measurements before anything is judged.
        settled: see :class:`DropFromReference`.
        follow_trend: see :class:`DropFromReference`.
        worse: see :class:`DropFromReference`.
    """

    threshold: float = 8.0
    allowance: float = 1.5
    drop: float = 0.1
    least_noise: float = 0.03
    warmup_checks: int = 6
    settled: float = 0.02
    follow_trend: bool = True
    worse: Worse = "marker"

    def __post_init__(self) -> None:
        if not 0 < self.drop < 1 or min(self.least_noise, self.threshold, self.settled) <= 0 or self.allowance < 0:
            raise InputError(
                f"drop lies in (0, 1), least_noise, threshold, settled are above 0, allowance is 0 or more; got {self}"
            )
        if self.warmup_checks < 1:
            raise InputError(f"warmup_checks counts measurements, from 1; got {self}")
        require_direction(self.worse)

    @property
    def needed(self) -> int:
        """Low readings in a row that make a decline."""
        return 1

    def walk(self, seen: Readings) -> Iterator[Finding]:
        """What is found at each reading."""
        levels = seen.levels
        least = -math.log1p(-self.drop)
        total, low, since = 0.0, 0, 0
        before: Baseline | None = None
        judged_from = end_of_warm_up(seen, self.warmup_checks, self.settled)
        yield from map(Finding, range(judged_from))
        for now in range(judged_from, len(levels)):
            if total == 0 or before is None:
                since, before = now, baseline(seen, now, follow_trend=self.follow_trend)
            expected = before.at(now)
            noise = max(seen.sampling_error(recent_half(since), now), before.scatter, self.least_noise)
            gap = expected - levels[now]
            step = min(gap / noise - self.allowance, self.threshold / 2)
            total = min(max(0.0, total + step), 2 * self.threshold)
            low = now - since + 1 if total > self.threshold and gap > least else 0
            yield Finding(now, low, since, expected, noise)
