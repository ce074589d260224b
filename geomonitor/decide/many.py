"""Many runs side by side at their last measurement, and against a band of healthy ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

from geomonitor.errors import InputError
from geomonitor.history.records import ALARM, JUDGED
from geomonitor.history.runs import Run
from geomonitor.markers import MARKERS
from geomonitor.markers.table import BESIDE
from geomonitor.measure.protocol import differences

FEWEST = 3
"""Healthy runs that make a band."""
CHANCE = 0.05
"""That a healthy run leaves the band in any of its markers; shared out among them."""


class Band(NamedTuple):
    """The limits of the next healthy run."""

    low: float
    """-infinity if only a rise is worse"""
    high: float
    """infinity if only a fall is worse"""
    mean: float


class Row(NamedTuple):
    """One marker of one layer in all runs."""

    layer: str
    marker: str
    values: list[tuple[float, float]]
    """value and standard error of each run, at its last measurement; NaN if it was not measured"""
    band: Band | None
    """of the healthy runs; None without them, or if the marker has no direction that is worse"""
    regressed: list[bool]
    """whether each run left the band, or is undefined while the healthy ones are not"""


def compare_many(runs: Sequence[Run], against: Sequence[Run] = ()) -> list[Row]:
    """Put runs side by side, and against healthy ones.

    Args:
        runs: what is checked.
        against: healthy runs of the same recipe, three or more; none: nothing is judged.

    Returns:
        A row for each marker of each layer that all runs have measured.

    Raises:
        InputError: runs of several protocols; one or two healthy runs.
    """
    every = [*runs, *against]
    for run in every[1:]:
        if changed := differences(every[0].protocol, run.protocol):
            raise InputError(
                f"{every[0].path} and {run.path} were measured by different protocols ({', '.join(changed)}): their "
                "values cannot be compared"
            )
    if against and len(against) < FEWEST:
        raise InputError(f"a band needs {FEWEST} healthy runs; --against names {len(against)}")
    ends = [{key: _last(run, *key) for key in _measured(run)} for run in every]
    shared = [key for key in ends[0] if all(key in end for end in ends)]
    judged = [key for key in shared if against and _worse(key[1]) is not None]
    rows = []
    for key in shared:
        values = [end[key] for end in ends[: len(runs)]]
        band = (
            band_of([end[key][0] for end in ends[len(runs) :]], _worse(key[1]), len(judged)) if key in judged else None
        )
        regressed = [band is not None and not band.low <= value <= band.high for value, _ in values]
        rows.append(Row(*key, values, band, regressed))
    return rows


def band_of(values: Sequence[float], worse: str | None, markers: int) -> Band | None:
    r"""One-sided t prediction limit of one more value, :math:`\bar x \pm t_{n-1} s \sqrt{1 + 1/n}`.

    Args:
        values: of healthy runs.
        worse: the side on which a value is a regression: ``"lower"`` or ``"higher"``.
        markers: among which the chance of a false finding is shared out.

    Returns:
        None if a value is not finite, for then the healthy runs have no band.

    >>> band = band_of([1.0, 1.1, 0.9], "lower", 1)
    >>> round(band.low, 2), band.high
    (0.66, inf)
    """
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        return None
    n, mean = len(found), float(found.mean())
    width = float(stdtrit(n - 1, 1 - CHANCE / markers) * found.std(ddof=1) * math.sqrt(1 + 1 / n))
    return Band(mean - width if worse == "lower" else -math.inf, mean + width if worse == "higher" else math.inf, mean)


def regressions(rows: Sequence[Row], runs: Sequence[Run]) -> list[str]:
    """A sentence for each run and marker that left the band."""
    found = []
    for place, run in enumerate(runs):
        for row in rows:
            if row.regressed[place] and row.band is not None:
                value = row.values[place][0]
                number = "undefined" if math.isnan(value) else f"{value:.4g}"
                below = math.isfinite(row.band.low)
                side, limit = ("below", row.band.low) if below else ("above", row.band.high)
                found.append(
                    f"{run.name}: {row.marker} of {row.layer!r} is {number}, {side} {limit:.4g}, the limit of the "
                    f"healthy runs (mean {row.band.mean:.4g})"
                )
    return found


def _worse(marker: str) -> str | None:
    row = MARKERS.get(marker) or BESIDE.get(marker)
    return None if row is None else row.worse


def _measured(run: Run) -> list[tuple[str, str]]:
    history = run.history
    return [(layer, m) for layer in history.layers for m in history.markers(layer) if m not in (ALARM, JUDGED)]


def _last(run: Run, layer: str, marker: str) -> tuple[float, float]:
    series = run.history.series(layer, marker)
    return float(series.values[-1]), float(series.standard_errors[-1])
