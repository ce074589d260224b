"""What the past lets one expect of the next measurement, and when the early fall, while classes form, is over."""

from __future__ import annotations

import math

from geomonitor.alarms.detectors.levels import MOST_AN_EPOCH, WINDOW, Past, sampling_error, within_an_epoch
from geomonitor.alarms.detectors.robust import median, pair_slopes, scatter

SCATTER_FROM = 3
"""Levels that a scatter can be taken from; with fewer, the noise of a marker without a sampling error is unknown."""
MEDIAN_ERROR = 1.2533
"""The standard error of a median in units of that of a mean, of Gaussians."""


def recent_half(now: int) -> int:
    """Number of measurements in the later half of ``now`` ones, at most ``WINDOW`` of them."""
    return min(now - now // 2, WINDOW)


def new_baseline(past: Past, *, follow_trend: bool, recent_noise: bool = False) -> dict[str, float]:
    """Baseline from the later half of what comes before the latest measurement, at most ``WINDOW`` measurements.

    The level is a median and the slope a median of slopes (Theil and Sen), so that one outlier moves neither. The
    scatter comes from all levels in the window: that of a few levels is mostly chance. With ``recent_noise`` only
    the later half counts, enlarged by what chance does to few differences, if this is less: a steep rise at the
    start, as in fine-tuning, is no noise.

    Returns:
        ``level``, and ``slope`` per measurement, never above 0: that the past went up is no reason to expect more;
        ``centre``, the number of the measurement at which the line has ``level``; ``end``, the number of the next
        measurement; ``scatter``, the standard deviation of a measurement about the line, as it changes from one
        measurement to the next or from one epoch to the next, whatever is more, 0 if there are too few; ``error``
        of the first measurement of the half, and ``changes``, the sum of the errors of the changes since then.
    """
    now = past["count"] - 1
    half = recent_half(now)
    recent, window = past["levels"][-1 - half : -1], past["levels"][-1 - WINDOW : -1]
    slope = min(0.0, median(pair_slopes(recent))) if follow_trend and len(recent) > 2 else 0.0
    centre = now - (half + 1) / 2
    level = median([level - slope * (now - half + n - centre) for n, level in enumerate(recent)])
    return {
        "level": level,
        "slope": slope,
        "centre": centre,
        "end": now,
        "scatter": max(scatter(window, lag, recent=recent_noise) for lag in {1, within_an_epoch(past)}),
        "error": past["errors"][-1 - half],
        "changes": sum(reversed(past["change_errors"][-half:])),
    }


def continued(baseline: dict[str, float], past: Past) -> dict[str, float]:
    """The baseline of the measurement before, which stands still while a decline lasts."""
    return {**baseline, "changes": baseline["changes"] + past["change_errors"][-1]}


def expected(baseline: dict[str, float], past: Past) -> tuple[float, float]:
    """Expected level at the latest measurement, and the noise of its difference from that.

    The line goes on for as long again as it was seen, not for ever. The noise is the larger of sampling error and
    scatter.
    """
    level, slope, centre, end = (baseline[name] for name in ("level", "slope", "centre", "end"))
    line = level + slope * (min(past["count"] - 1, end + (end - centre)) - centre)
    independent = math.hypot(baseline["error"], past["errors"][-1])
    return line, max(sampling_error(independent, baseline["changes"]), baseline["scatter"])


def noise_is_known(past: Past, noise: float) -> bool:
    """Whether there is an error to compare a change with: a sampling error, or levels enough for a scatter."""
    return noise > 0 or past["count"] > SCATTER_FROM


def is_settled(past: Past, checks: int, settled: float) -> bool:
    """Whether the warm-up is over at the latest measurement.

    It lasts for ``checks`` measurements, and as many epochs if an epoch holds several of them (but no more than
    ``MOST_AN_EPOCH`` times as many measurements). It is over once, within the recent half, the median of the second
    part lies below that of the first by less than ``settled``, or by less than the sampling error of such a difference.

    Args:
        past: the latest measurements.
        checks: measurements that belong to the warm-up in any case.
        settled: relative fall of the level; infinite: the warm-up is over after ``checks`` measurements, however many
            of them an epoch holds and however the level falls.
    """
    now = past["count"] - 1
    if settled == math.inf:
        return now >= checks
    if now < checks or (now < MOST_AN_EPOCH * checks and past["epochs"][-1] - past["first_epoch"] < checks):
        return False
    half = recent_half(now)
    recent = past["levels"][-1 - half :]
    middle = len(recent) // 2
    independent = math.hypot(past["errors"][-1 - half], past["errors"][-1])
    error = sampling_error(independent, sum(reversed(past["change_errors"][-half:])))
    limit = max(settled, MEDIAN_ERROR * error / math.sqrt(max(middle, 1)))
    return median(recent[:middle]) - median(recent[middle:]) < limit
