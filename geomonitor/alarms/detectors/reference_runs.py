"""Outside the band of earlier healthy runs of the same recipe."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]

from geomonitor.alarms.detectors.readings import Finding, Readings, Walker, Worse, readings, require_direction
from geomonitor.errors import InputError
from geomonitor.history.history import History
from geomonitor.history.records import Series

_LEAST_RUNS = 3
_NEIGHBOURS = 2


class ReferenceRuns(Walker):
    """Decline: a marker lies outside the band of earlier healthy runs, at the same epoch, and stays there.

    For a team that trains the same model again and again. At each epoch (or step, where epochs are not known) the band
    is the one-sided prediction limit for one more run, Student's ``mean - t * sd * sqrt(1 + 1/n)`` of the logarithms:
    a percentile of what a healthy run does, right also for few runs, whose own extremes say little. ``sd`` is pooled
    over neighbouring measurements. There is no warm-up: the fall while classes form is in the band.

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
        if not 0.5 < coverage < 1 or not 0 <= least_change < 1 or patience_checks < 1:
            raise InputError("coverage lies in (0.5, 1), least_change in [0, 1), patience_checks is 1 or more")
        require_direction(worse)
        sources = sorted(glob.glob(reference)) if isinstance(reference, str) else list(reference)
        if len(sources) < _LEAST_RUNS:
            raise InputError(f"{reference!r} gives {len(sources)} run(s); a band needs at least {_LEAST_RUNS}")
        self.runs = [source if isinstance(source, History) else History.load(source) for source in sources]
        self.protocols = [_protocol(source) for source in sources if not isinstance(source, History)]
        self.coverage = coverage
        self.least_change = least_change
        self.patience_checks = patience_checks
        self.worse = worse

    def check_protocol(self, protocol: Mapping[str, Any]) -> None:
        """Refuse to judge numbers by runs that were measured in another way.

        Raises:
            InputError: what differs.
        """
        for theirs in self.protocols:
            changed = [name for name in protocol if theirs and theirs.get(name) != protocol[name]]
            if changed:
                raise InputError(
                    f"the reference runs were measured by another protocol; {', '.join(changed)} differ(s). "
                    "Bands hold for the same probe set, layers and settings only."
                )

    @property
    def needed(self) -> int:
        """Low readings in a row that make a decline."""
        return self.patience_checks

    def walk(self, seen: Readings) -> Iterator[Finding]:
        """What is found at each reading."""
        own = seen.series
        others = [readings(run.series(own.layer, own.marker), seen.direction) for run in self.runs]
        by_epoch = all(np.isfinite(one.series.epochs).all() for one in [seen, *others])
        moments = _moments(own, by_epoch)[seen.places]
        mean, deviation, count = _band(
            [(_moments(one.series, by_epoch)[one.places], np.asarray(one.levels)) for one in others], moments
        )
        least = -math.log1p(-self.least_change)
        low = since = 0
        expected = noise = math.nan
        quantile = {n: float(stdtrit(n - 1, self.coverage)) for n in set(count.tolist()) if n >= _LEAST_RUNS}
        for now, level in enumerate(seen.levels):
            if count[now] < _LEAST_RUNS:
                yield Finding(now, low, since, expected, noise)  # beyond the end of the other runs nothing is known
                continue
            expected, noise = float(mean[now]), float(deviation[now] * math.sqrt(1 + 1 / count[now]))
            gap = expected - level
            outside = gap > max(least, quantile[int(count[now])] * noise)
            since = since if low else now
            low = low + 1 if outside else 0
            yield Finding(now, low, since, expected, noise)


def _band(
    runs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], moments: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean and standard deviation over runs at each moment, and how many runs reach there; all of length ``n``."""
    at = np.full((len(runs), len(moments)), math.nan)
    for row, (when, levels) in zip(at, runs, strict=True):
        if len(when):
            row[:] = np.interp(moments, when, levels, left=math.nan, right=math.nan)
    count = np.isfinite(at).sum(axis=0)
    known = count >= _LEAST_RUNS
    mean, variance = np.full(len(moments), math.nan), np.full(len(moments), math.nan)
    mean[known] = np.nanmean(at[:, known], axis=0)
    variance[known] = np.nanvar(at[:, known], axis=0, ddof=1)
    pooled = [
        np.nanmean(variance[max(0, n - _NEIGHBOURS) : n + _NEIGHBOURS + 1]) if known[n] else math.nan
        for n in range(len(moments))
    ]
    return mean, np.sqrt(np.asarray(pooled, dtype=np.float64)), count


def _moments(series: Series, by_epoch: bool) -> NDArray[np.float64]:
    return series.epochs if by_epoch else series.steps.astype(np.float64)


def _protocol(source: str | os.PathLike[str]) -> dict[str, Any]:
    side = Path(source).with_suffix(".json")
    found: dict[str, Any] = json.loads(side.read_text(encoding="utf-8")) if side.exists() else {}
    return found
