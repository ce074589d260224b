"""False alarms on simulated healthy runs, which have more noise and drift than those of the bench."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from geomonitor.decline import enough_votes
from geomonitor.detectors.readings import Walker
from tests.benchmarks.early_warning.calibration import FALSE_ALARM_RATE
from tests.benchmarks.early_warning.warners import Warner
from tests.detectors.simulated_runs import as_series, healthy_run

SIMULATED = 1_000


def is_quiet(warner: Warner) -> bool:
    """Whether it has an alarm in one of fifty simulated runs at most; so is what judges no series of a run."""
    if not warner.detectors:
        return True
    shares = [_shares(detector, marker) for marker, detector in warner.detectors.items()]
    alarms = enough_votes([*warner.detectors], shares, warner.votes).any(axis=1)
    return bool(alarms.mean() <= FALSE_ALARM_RATE)


@functools.cache
def _shares(detector: Walker, marker: str) -> NDArray[np.float64]:
    """Shares of a vote, runs by measurements."""
    runs = (healthy_run(seed, [marker])[marker] for seed in range(SIMULATED))
    return np.array([detector.shares(as_series(marker, run)) for run in runs])
