"""False alarms on simulated healthy runs, which have more noise and drift than those of the bench.

OMP_NUM_THREADS=1 python -m benchmarks.early_warning.simulated      # false alarms of the default; a minute
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_warning.calibration import FALSE_ALARM_RATE
from benchmarks.early_warning.warners import Warner
from geomonitor.alarms.detectors import AgreeingDrop, IncrementalDetector
from geomonitor.alarms.panel import AGREEING, DEFAULT_WATCH, VOTES
from geomonitor.alarms.votes import enough_votes
from tests.alarms.detectors.simulated_runs import as_series, healthy_run, restless_run
from tests.alarms.detectors.synthetic import TIME

SIMULATED = 1_000
Simulation = Callable[[int], dict[str, NDArray[np.float64]]]
"""From a seed to the values of each watched marker."""


def main() -> None:
    """The table in the section "False alarms" of ``docs/warnings.md``."""
    hasty = AgreeingDrop(patience_checks=1)
    kinds: dict[str, Simulation] = {"healthy": _healthy}
    for noise in (0.005, 0.01, 0.02, 0.03):
        kinds[f"white noise of {noise:.1%}"] = functools.partial(restless_run, markers=DEFAULT_WATCH, noise=noise)
    for drift in (0.001, 0.0015, 0.002):
        kinds[f"healthy, two families fall by {drift:.2%} a measurement"] = functools.partial(_drifting, drift)
    print(f"| {SIMULATED} runs | default ({VOTES} votes) | 2 votes | without the second look |\n|---|---|---|---|")
    for kind, simulation in kinds.items():
        runs = [simulation(seed) for seed in range(SIMULATED)]
        rates = [
            false_alarm_rate(detector, votes, runs)
            for detector, votes in ((AGREEING, VOTES), (AGREEING, 2), (hasty, VOTES))
        ]
        print(f"| {kind} | {' | '.join(f'{rate:.1%}' for rate in rates)} |", flush=True)


def false_alarm_rate(detector: IncrementalDetector, votes: float, runs: list[dict[str, NDArray[np.float64]]]) -> float:
    """Share of the runs with an alarm at any measurement, of the markers watched by default."""
    shares = [[detector.shares(as_series(name, run[name])) for name in DEFAULT_WATCH] for run in runs]
    return float(np.mean([enough_votes(DEFAULT_WATCH, of_run, votes).any() for of_run in shares]))


def is_quiet(warner: Warner) -> bool:
    """Whether it has an alarm in one of fifty simulated runs at most; so is what judges no series of a run."""
    if not warner.detectors:
        return True
    shares = [_shares(detector, marker) for marker, detector in warner.detectors.items()]
    alarms = enough_votes([*warner.detectors], shares, warner.votes).any(axis=1)
    return bool(alarms.mean() <= FALSE_ALARM_RATE)


@functools.cache
def _shares(detector: IncrementalDetector, marker: str) -> NDArray[np.float64]:
    """Shares of a vote, runs by measurements."""
    runs = (healthy_run(seed, [marker])[marker] for seed in range(SIMULATED))
    return np.array([detector.shares(as_series(marker, run)) for run in runs])


def _healthy(seed: int) -> dict[str, NDArray[np.float64]]:
    return healthy_run(seed, DEFAULT_WATCH)


def _drifting(drift: float, seed: int) -> dict[str, NDArray[np.float64]]:
    run = _healthy(seed)
    return run | {name: run[name] * np.exp(-drift * TIME) for name in ("capacity", "mean_norm")}


if __name__ == "__main__":
    main()
