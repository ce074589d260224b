"""A detector as a recursion: a state, one measurement after the other, and a verdict at any time."""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor.alarms.verdict import Detector, Verdict
from geomonitor.history.records import Series

State = dict[str, Any]
"""Plain numbers, strings, lists and dicts: it goes through JSON and ``torch.load(weights_only=True)``."""


class Measured(NamedTuple):
    """One marker of one layer at one measurement."""

    step: int
    """optimiser steps done"""
    epoch: float
    """NaN where epochs are not known"""
    value: float
    """NaN if the measurement failed or the marker is undefined"""
    standard_error: float = math.nan
    change_error: float = math.nan
    """standard error of the change since the measurement before"""


class IncrementalDetector(ABC):
    """Judges a series one measurement after the other, each at the same cost however long the series is.

    ``step`` changes nothing: it returns a new state. So the verdict on a saved series is
    ``verdict(functools.reduce(step, measurements, start(layer, marker)))``, equal to that of the run to the digit.

    >>> from geomonitor import DropFromReference
    >>> detector = DropFromReference(warmup_checks=2)
    >>> state = detector.start("penultimate", "dimension")
    >>> for number, value in enumerate([2.0, 2.0, 2.0, 2.0, 1.2, 1.2]):
    ...     state = detector.step(state, Measured(10 * number, number, value))
    >>> verdict = detector.verdict(state)
    >>> verdict.declined, verdict.since_step
    (True, 40)
    """

    @abstractmethod
    def start(self, layer: str, marker: str) -> State:
        """The state before the first measurement."""

    @abstractmethod
    def step(self, state: State, measured: Measured) -> State:
        """The state after one more measurement; ``state`` stays as it is."""

    @abstractmethod
    def verdict(self, state: State) -> Verdict:
        """The verdict after the latest measurement."""

    def __call__(self, series: Series) -> Verdict:
        """The verdict after the last measurement of a series."""
        return self.verdict(functools.reduce(self.step, measurements(series), self.start(series.layer, series.marker)))

    def verdicts(self, series: Series) -> Iterator[Verdict]:
        """The verdict after each measurement of a series."""
        states = itertools.accumulate(measurements(series), self.step, initial=self.start(series.layer, series.marker))
        return map(self.verdict, itertools.islice(states, 1, None))

    def declines(self, series: Series) -> NDArray[np.bool_]:
        """Whether the verdict was "declined" after each measurement; ``(n,)``."""
        return self.shares(series) >= 1

    def shares(self, series: Series) -> NDArray[np.float64]:
        """``Verdict.share`` after each measurement; ``(n,)``."""
        return np.array([verdict.share for verdict in self.verdicts(series)], dtype=np.float64)


class WholeSeries(IncrementalDetector):
    """Makes any function of a series incremental: the state is the series, and each verdict costs a look at all of it.

    Args:
        function: the detector.
    """

    def __init__(self, function: Detector) -> None:
        self.function = function

    def start(self, layer: str, marker: str) -> State:
        """An empty series."""
        return {"layer": layer, "marker": marker, "measured": []}

    def step(self, state: State, measured: Measured) -> State:
        """The series with one more measurement."""
        return {**state, "measured": [*state["measured"], list(measured)]}

    def verdict(self, state: State) -> Verdict:
        """The verdict of the function on the series."""
        columns = np.array(state["measured"], dtype=np.float64).reshape(-1, len(Measured._fields)).T
        steps = np.array([row[0] for row in state["measured"]], dtype=np.int64)  # a float would round large ones
        return self.function(Series(state["layer"], state["marker"], steps, *columns[1:]))


def incremental(detector: Detector) -> IncrementalDetector:
    """The detector itself if it is incremental, else as a function of whole series."""
    return detector if isinstance(detector, IncrementalDetector) else WholeSeries(detector)


def measurements(series: Series) -> Iterator[Measured]:
    """The measurements of a series, in order."""
    unknown = itertools.repeat(math.nan)
    changes = unknown if series.change_errors is None else series.change_errors.tolist()
    columns = (series.steps, series.epochs, series.values, series.standard_errors)
    return map(Measured, *(column.tolist() for column in columns), changes)
