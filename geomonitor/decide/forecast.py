"""Transfer of finished runs of one recipe, forecast from runs of which it is known: a line, and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]

from geomonitor.errors import InputError
from geomonitor.history.runs import Run
from geomonitor.measure.protocol import differences

FEWEST = 6
"""Runs with truth from which a line is fitted: of six, the nominal 80 % intervals covered 79 % of published runs."""
BEYOND = 0.1
"""Of the range of the predictor, on each side: farther outside nothing is forecast."""
LEVEL = 0.8


class Interval(NamedTuple):
    """A forecast."""

    value: float
    """NaN outside of the range of the predictor"""
    low: float
    high: float


class Line(NamedTuple):
    """Ordinary least squares through points of finished runs."""

    slope: float
    intercept: float
    scatter: float
    """residual standard deviation, n - 2 degrees of freedom"""
    x: NDArray[np.float64]
    """predictor of the runs with truth, ``(n,)``"""

    def forecast(self, x: float, level: float = LEVEL) -> Interval:
        r"""The t prediction interval, :math:`\pm t_{n-2} s \sqrt{1 + 1/n + (x - \bar x)^2 / S_{xx}}`.

        Args:
            x: predictor of a run; NaN or outside of the known range gives NaN.
            level: nominal coverage.
        """
        n, margin = len(self.x), BEYOND * float(np.ptp(self.x))
        if not self.x.min() - margin <= x <= self.x.max() + margin:
            return Interval(math.nan, math.nan, math.nan)
        away = (x - self.x.mean()) ** 2 / ((self.x - self.x.mean()) ** 2).sum()
        width = float(stdtrit(n - 2, 0.5 + level / 2)) * self.scatter * math.sqrt(1 + 1 / n + away)
        value = self.intercept + self.slope * x
        return Interval(value, value - width, value + width)


class Check(NamedTuple):
    """How a line forecasts each run with truth from the others."""

    runs: int
    """that were forecast: the others lie outside of the range"""
    covered: float
    """share of them inside of their interval"""
    error: float
    """mean absolute error"""
    error_of_mean: float
    """of the mean of the other runs as the forecast of each"""


def fit(x: Sequence[float] | NDArray[np.float64], y: Sequence[float] | NDArray[np.float64]) -> Line:
    """The line through runs with truth.

    Args:
        x: predictor of each run, such as the logarithm of the dimension at its end.
        y: truth at its end.

    Raises:
        InputError: fewer than three runs, values that are not finite, a predictor that is the same in all.

    >>> line = fit([0.0, 1.0, 2.0, 3.0], [0.1, 0.9, 2.1, 2.9])
    >>> round(line.slope, 2), [round(value, 2) for value in line.forecast(1.5)]
    (0.96, [1.5, 1.23, 1.77])
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) < 3 or xs.shape != ys.shape or not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise InputError(f"a line needs three finite points; got {len(xs)} predictors and {len(ys)} truths")
    centred = xs - xs.mean()
    square = float((centred**2).sum())
    if not square > 0:
        raise InputError("the predictor is the same in all runs with truth, so it can forecast nothing")
    slope = float((centred * ys).sum() / square)
    intercept = float(ys.mean() - slope * xs.mean())
    residuals = ys - intercept - slope * xs
    return Line(slope, intercept, math.sqrt(float((residuals**2).sum()) / (len(xs) - 2)), xs)


def leave_one_out(x: Sequence[float], y: Sequence[float], level: float = LEVEL) -> Check:
    """Forecast each run with truth by the line through the others."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    inside, errors, of_mean = [], [], []
    for place in range(len(xs)):
        others = np.arange(len(xs)) != place
        if not np.ptp(xs[others]) > 0:
            continue
        found = fit(xs[others], ys[others]).forecast(float(xs[place]), level)
        if math.isfinite(found.value):
            inside.append(found.low <= ys[place] <= found.high)
            errors.append(abs(found.value - ys[place]))
            of_mean.append(abs(ys[others].mean() - ys[place]))
    if not inside:
        return Check(0, math.nan, math.nan, math.nan)
    return Check(len(inside), float(np.mean(inside)), float(np.mean(errors)), float(np.mean(of_mean)))


class Forecasts(NamedTuple):
    """Runs, their predictor, and what is known or forecast of each."""

    predictor: str
    """in words"""
    names: list[str]
    x: list[float]
    truth: list[float]
    """at the end of a run; NaN for one that is forecast"""
    intervals: list[Interval]
    """NaN for a run with truth"""
    line: Line
    check: Check


def forecast_runs(
    runs: Sequence[Run], truth: str, *, layer: str, early: float | None = None, level: float = LEVEL
) -> Forecasts:
    """Forecast the truth at the end of runs that lack it from runs of the same recipe that have it.

    Args:
        runs: of one protocol and, which cannot be checked, one architecture and recipe; finished, but for ``early``.
        truth: name of a marker that some runs have at their last measurement, such as ``transfer_accuracy``.
        layer: of the truth and of the dimension.
        early: predict by the truth itself at this share of training, instead of by the dimension at the end; runs that
            are shorter than the longest one are then forecast.
        level: nominal coverage of the intervals.

    Raises:
        InputError: runs of several protocols; fewer than six runs with truth.
    """
    for run in runs[1:]:
        if changed := differences(runs[0].protocol, run.protocol):
            raise InputError(
                f"{runs[0].path} and {run.path} were measured by different protocols ({', '.join(changed)}): "
                "a line through them would mean nothing"
            )
    total = max(max(record.step for record in run.history) for run in runs)
    x, known = [], []
    for run in runs:
        ended = early is None or max(record.step for record in run.history) == total
        known.append(_at(run, layer, truth, None) if ended else math.nan)
        x.append(_log(_at(run, layer, "dimension", None)) if early is None else _at(run, layer, truth, early * total))
    usable = [place for place, (a, b) in enumerate(zip(x, known, strict=True)) if math.isfinite(a) and math.isfinite(b)]
    if len(usable) < FEWEST:
        raise InputError(
            f"{len(usable)} runs have {truth} of {layer!r} at their end, and a predictor: a line needs {FEWEST} of them"
        )
    xs, ys = [x[place] for place in usable], [known[place] for place in usable]
    line, nothing = fit(xs, ys), Interval(math.nan, math.nan, math.nan)
    intervals = [nothing if math.isfinite(k) else line.forecast(a, level) for a, k in zip(x, known, strict=True)]
    words = "ln dimension at the end" if early is None else f"{truth} after {early:.0%} of training"
    return Forecasts(words, [r.name for r in runs], x, known, intervals, line, leave_one_out(xs, ys, level))


def _at(run: Run, layer: str, marker: str, step: float | None) -> float:
    """The marker at the last measurement, or the last one up to a step; NaN if it was not measured."""
    series = run.history.series(layer, marker)
    if step is None:
        last = max(record.step for record in run.history if record.layer)
        return float(series.values[-1]) if len(series.steps) and series.steps[-1] == last else math.nan
    seen = np.flatnonzero(series.steps <= step)
    return float(series.values[seen[-1]]) if len(seen) else math.nan


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan
