"""Outside the band of earlier healthy runs of the same recipe."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]

from geomonitor._options import COUNT, Range, check_numbers
from geomonitor.alarms.detectors.levels import (
    Finding,
    LevelDetector,
    Track,
    Worse,
    begun,
    can_be_judged,
    check_direction,
    level_of,
)
from geomonitor.alarms.verdict import Direction
from geomonitor.errors import InputError
from geomonitor.history.history import History
from geomonitor.history.runs import read_side_file
from geomonitor.measure.protocol import differences

_LEAST_RUNS = 3
_POOLED = 3
"""Measurements over which the variance of the runs is pooled: the latest one and those before it."""


class _Curve(NamedTuple):
    """The levels of a marker in one of the reference runs."""

    steps: NDArray[np.float64]
    epochs: NDArray[np.float64]
    levels: NDArray[np.float64]


class ReferenceRuns(LevelDetector):
    """Decline: a marker lies outside the band of earlier healthy runs, at the same epoch, and stays there.

    For a team that trains the same model again and again. At each epoch (or step, where epochs are not known) the band
    is the one-sided prediction limit for one more run, Student's ``mean - t * sd * sqrt(1 + 1/n)`` of the logarithms:
    a percentile of what a healthy run does, right also for few runs, whose own extremes are no reliable limit. ``sd``
    is pooled over the latest measurement and the two before it. There is no warm-up: the fall while classes form is in
    the band.
    Beyond the end of the reference runs nothing is judged: the last verdict holds.

    Args:
        reference: pattern of history files (``"runs/good/*/geometry.csv"``), or a sequence of paths or histories;
            three runs or more.
        coverage: share of healthy measurements that lie within the band, in ``(0.5, 1)``.
        least_change: smallest relative distance from the mean of the runs that matters, in ``[0, 1)``.
        patience_checks: measurements outside in a row that make a decline.
        worse: see :class:`geomonitor.DropFromReference`.

    Raises:
        InputError: fewer than three runs, or a file that is no history.
    """

    def __init__(
        self,
        reference: str | Sequence[str | os.PathLike[str] | History],
        *,
        coverage: float = 0.999,
        least_change: float = 0.05,
        patience_checks: int = 2,
        worse: Worse = "marker",
    ) -> None:
        self.coverage = coverage
        self.least_change = least_change
        self.patience_checks = patience_checks
        self.worse = worse
        check_numbers(self, coverage=Range(0.5, 1), least_change=Range(0, 1, ends="[)"), patience_checks=COUNT)
        check_direction(worse)
        sources = _sources(reference)
        if len(sources) < _LEAST_RUNS:
            raise InputError(f"{reference!r} gives {len(sources)} run(s); a band needs at least {_LEAST_RUNS}")
        self.paths = [os.fspath(source) for source in sources if not isinstance(source, History)]
        """of the runs that were given as files"""
        self.runs = [source if isinstance(source, History) else History.load(source) for source in sources]
        self.protocols = [_protocol(source) for source in sources if not isinstance(source, History)]
        self._curves: dict[tuple[str, str, Direction], list[_Curve]] = {}  # of the runs, which do not change

    def check_protocol(self, protocol: Mapping[str, Any]) -> None:
        """Refuse to judge numbers by runs that were measured in another way.

        Raises:
            InputError: what differs.
        """
        for theirs in self.protocols:
            if theirs and (changed := differences(protocol, theirs)):
                raise InputError(
                    f"the reference runs were measured by another protocol; {', '.join(changed)} differ(s). "
                    "Bands hold for the same probe set, layers and settings only."
                )

    def settings(self) -> dict[str, Any]:
        """What it takes to make the detector again; nothing if runs in memory were given."""
        if len(self.paths) < len(self.runs):
            return {}
        return {
            "reference": self.paths,
            "coverage": self.coverage,
            "least_change": self.least_change,
            "patience_checks": self.patience_checks,
            "worse": self.worse,
        }

    @property
    def needed(self) -> int:
        """Low measurements in a row that make a decline."""
        return self.patience_checks

    @property
    def memory(self) -> int:
        """Measurements that are kept in the state."""
        return 1

    def look(self, track: Track) -> tuple[Finding, dict[str, float]]:
        """What is found at the latest measurement; ``own`` holds the latest variances of the runs."""
        past, found = track["past"], track["finding"]
        levels = self._levels(track)
        count = len(levels)
        variance = float(np.var(levels, ddof=1)) if count >= _LEAST_RUNS else math.nan
        latest = [*track["own"].values(), variance][-_POOLED:]
        own = {str(place): value for place, value in enumerate(latest)}
        if count < _LEAST_RUNS:
            return found, own
        mean, pooled = float(np.mean(levels)), float(np.nanmean(latest))
        noise = math.sqrt(pooled) * math.sqrt(1 + 1 / count)
        limit = max(-math.log1p(-self.least_change), float(stdtrit(count - 1, self.coverage)) * noise)
        outside = mean - past["levels"][-1] > limit
        if outside and not found["low"]:
            found = begun(found, past)
        return {**found, "low": found["low"] + 1 if outside else 0, "expected": mean, "noise": noise}, own

    def _levels(self, track: Track) -> list[float]:
        """Levels of the runs that reach as far, by epoch if all have epochs, else by step."""
        key = track["layer"], track["marker"], track["direction"]
        if key not in self._curves:
            self._curves[key] = [_curve(run, *key) for run in self.runs]
        curves, now = self._curves[key], track["past"]
        by_epoch = math.isfinite(now["epochs"][-1]) and all(np.isfinite(curve.epochs).all() for curve in curves)
        at = now["epochs"][-1] if by_epoch else now["steps"][-1]
        levels = [
            float(np.interp(at, curve.epochs if by_epoch else curve.steps, curve.levels, left=math.nan, right=math.nan))
            for curve in curves
            if len(curve.levels)
        ]
        return [level for level in levels if math.isfinite(level)]


def _sources(reference: object) -> list[Any]:
    if isinstance(reference, str):
        return sorted(glob.glob(reference))
    if isinstance(reference, Sequence) and all(isinstance(one, (str, os.PathLike, History)) for one in reference):
        return list(reference)
    raise InputError(f"reference is a pattern of history files, or a list of paths or histories; got {reference!r}")


def _curve(run: History, layer: str, marker: str, direction: Direction) -> _Curve:
    series = run.series(layer, marker)
    kept = [place for place, value in enumerate(series.values.tolist()) if can_be_judged(value, direction)]
    levels = [level_of(float(series.values[place]), direction) for place in kept]
    return _Curve(series.steps[kept].astype(np.float64), series.epochs[kept], np.array(levels, dtype=np.float64))


def _protocol(source: str | os.PathLike[str]) -> dict[str, Any]:
    return read_side_file(Path(source).with_suffix(".json"))[0]
