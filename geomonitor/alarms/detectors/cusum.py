"""A fall that adds up: Page's cumulative sum of what lies below the expected level by more than an allowance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from geomonitor._options import COUNT, NOT_NEGATIVE, OPEN_SHARE, POSITIVE, check_flag, check_numbers
from geomonitor.alarms.detectors.baseline import continued, expected, is_settled, new_baseline
from geomonitor.alarms.detectors.levels import Finding, LevelDetector, Track, Worse, begun, check_direction


@dataclass(frozen=True)
class Cusum(LevelDetector):
    """Decline: measurements below the expected level that add up, although each alone may be within the noise.

    The one-sided cumulative sum of Page 1954 (Biometrika 41), with the level, the warm-up and the noise of
    :class:`DropFromReference`: ``S <- max(0, S + gap / noise - allowance)``, where ``gap`` is how far (in relative
    terms) a measurement lies below the reference, which stands still while ``S > 0``. Declined while ``S > threshold``
    and the gap is at least ``drop``. One measurement adds at most ``threshold / 2``, so that an outlier is no decline,
    and ``S`` never exceeds ``2 threshold``, so that a recovery ends the alarm.

    Args:
        threshold: sum of standard errors that makes a decline.
        allowance: standard errors by which a measurement may lie low without adding to the sum.
        drop: smallest relative drop that matters, in ``(0, 1)``.
        least_noise: smallest relative noise assumed: a short quiet stretch does not prove a quiet run.
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
        check_numbers(
            self,
            threshold=POSITIVE,
            allowance=NOT_NEGATIVE,
            drop=OPEN_SHARE,
            least_noise=POSITIVE,
            warmup_checks=COUNT,
            settled=POSITIVE,
        )
        check_flag(self, "follow_trend")
        check_direction(self.worse)

    @property
    def needed(self) -> int:
        """Low measurements in a row that make a decline."""
        return 1

    def look(self, track: Track) -> tuple[Finding, dict[str, float]]:
        """What is found at the latest measurement; ``own`` is the baseline and the sum ``S``."""
        past, found, own = track["past"], track["finding"], track["own"]
        if not own and not is_settled(past, self.warmup_checks, self.settled):
            return found, own
        total = own.get("total", 0.0)
        if total > 0:
            own = continued(own, past)
        else:
            own, found = new_baseline(past, follow_trend=self.follow_trend), begun(found, past)
        level, noise = expected(own, past)
        noise = max(noise, self.least_noise)
        gap = level - past["levels"][-1]
        total = max(0.0, total + min(gap / noise - self.allowance, self.threshold / 2))
        total = min(total, 2 * self.threshold)
        declined = total > self.threshold and gap > -math.log1p(-self.drop)
        low = past["count"] - int(own["end"]) if declined else 0  # since the sum began to grow
        return {**found, "low": low, "expected": level, "noise": noise}, {**own, "total": total}
