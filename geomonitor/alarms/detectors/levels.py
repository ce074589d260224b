"""What the built-in detectors share: the latest levels of a marker, their errors, and the state of a decline.

A level is the logarithm of a value, with its sign changed if a rise is the decline: then a drop of 15 % has the same
size anywhere, and a rise is judged like a fall.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal, TypedDict, TypeVar, get_args

import numpy as np

from geomonitor._options import one_of
from geomonitor.alarms.detectors.incremental import IncrementalDetector, Measured, State
from geomonitor.alarms.detectors.robust import median
from geomonitor.alarms.verdict import Direction, Verdict
from geomonitor.markers import COUNTS, MARKERS

WINDOW = 40
"""Measurements that a baseline looks back at most: a long run is judged by its recent past, in constant time."""
MOST_AN_EPOCH = 4
"""An epoch of more measurements than this counts as one of this number."""
SMALLEST = float(np.finfo(np.float64).tiny)
"""Stands in for 0, whose logarithm is infinite: nothing can fall further."""

Worse = Literal["lower", "higher", "either", "marker"]
Number = TypeVar("Number", int, float)


class Past(TypedDict):
    """The latest measurements of a marker that can be judged, at most ``memory`` of each list."""

    count: int
    """of all measurements so far"""
    first_epoch: float
    value: float
    """the latest one"""
    steps: list[int]
    epochs: list[float]
    """NaN where not known"""
    levels: list[float]
    errors: list[float]
    """relative standard error of each; 0 if there is none, half a unit of a count"""
    change_errors: list[float]
    """relative standard error of the change since the measurement before, with common draws; infinite if not known"""


class Finding(TypedDict):
    """What a detector finds at a measurement."""

    low: int
    """declining measurements up to this one, in a row"""
    since_step: int
    """of the first of them"""
    since_epoch: float
    expected: float
    """level; NaN during warm-up"""
    noise: float
    """relative; NaN during warm-up"""
    plain: bool
    """one of these measurements was so low that it needs no second one"""
    gap: float
    """of the latest of them, below the expected level; 0 if there is none"""
    size: float
    """the largest gap that two of them in a row exceeded"""


class Track(TypedDict):
    """A marker of a layer as it is judged in one direction."""

    layer: str
    marker: str
    direction: Direction
    past: Past
    finding: Finding
    own: dict[str, float]
    """what a detector keeps beside"""


class LevelDetector(IncrementalDetector):
    """Judges the levels of a marker, in one direction or in both."""

    worse: Worse

    @property
    @abstractmethod
    def needed(self) -> int:
        """Low measurements in a row that make a decline."""

    @property
    def memory(self) -> int:
        """Measurements that are kept in the state, the latest one included."""
        return WINDOW + 1

    @abstractmethod
    def look(self, track: Track) -> tuple[Finding, dict[str, float]]:
        """What is found at the latest measurement of ``track["past"]``, and what to keep beside."""

    def start(self, layer: str, marker: str) -> State:
        """The state before the first measurement."""
        return {"tracks": [_empty(layer, marker, direction) for direction in _directions(self.worse, marker)]}

    def step(self, state: State, measured: Measured) -> State:
        """The state after one more measurement; one that failed changes nothing."""
        return {"tracks": [self._step(track, measured) for track in state["tracks"]]}

    def verdict(self, state: State) -> Verdict:
        """Of the verdicts on both directions the declining one, else the one nearer to a decline."""
        return max((_verdict(track, self.needed) for track in state["tracks"]), key=lambda v: (v.declined, v.checks))

    def _step(self, track: Track, measured: Measured) -> Track:
        if not can_be_judged(measured.value, track["direction"]):
            return track
        seen: Track = {**track, "past": _with(track, measured, self.memory)}
        finding, own = self.look(seen)
        return {**seen, "finding": _sized(finding, track["finding"], seen["past"]), "own": own}


def can_be_judged(value: float, direction: Direction) -> bool:
    """Whether a value is finite and positive, or 0 if a fall is the decline, as in a dead network."""
    return math.isfinite(value) and (value > 0 or (value == 0 and direction == "lower"))


def level_of(value: float, direction: Direction) -> float:
    """Logarithm of a value, with its sign changed if a rise is the decline."""
    return sign_of(direction) * math.log(value or SMALLEST)


def sign_of(direction: Direction) -> float:
    """1 if a fall is the decline, -1 if a rise is."""
    return 1.0 if direction == "lower" else -1.0


def sampling_error(independent: float, changes: float) -> float:
    """An upper bound of the standard error of the difference of two levels.

    Errors of common draws do not add up to more than independent ones, nor to more than those of the changes between.

    Args:
        independent: of the difference, if the draws were independent.
        changes: sum of the errors of all changes from one to the other.
    """
    return min(independent, changes)


def within_an_epoch(past: Past) -> int:
    """How many measurements an epoch holds, by the latest ones: 1 where epochs are not known, 4 at most.

    By the median of the epochs that lie wholly within them: one more measurement, to follow up another, is no new pace.

    Measurements of one epoch share the ups and downs of the training: their differences underestimate how far they
    wander from one epoch to the next. And the more there are, the more often one is low by chance.
    """
    epochs = [epoch for epoch in past["epochs"][-2 * MOST_AN_EPOCH :] if math.isfinite(epoch)]
    counts = [epochs.count(epoch) for epoch in dict.fromkeys(epochs)]
    return min(round(median(counts[1:-1]) if len(counts) > 2 else max(counts, default=1)), MOST_AN_EPOCH)


def begun(finding: Finding, past: Past, ago: int = 0) -> Finding:
    """The finding with a decline that begins ``ago`` measurements ago; 0 is the latest one."""
    return {**finding, "since_step": past["steps"][-1 - ago], "since_epoch": past["epochs"][-1 - ago]}


def check_direction(worse: str) -> None:
    """Refuse what is no direction.

    Raises:
        InputError: something else.
    """
    one_of("worse", worse, get_args(Worse))


def _sized(finding: Finding, before: Finding, past: Past) -> Finding:
    """The finding with its gap, and with the size of the decline that it goes on with."""
    if not finding["low"]:
        return {**finding, "gap": 0.0, "size": 0.0}
    gap = max(0.0, finding["expected"] - past["levels"][-1])
    if finding["low"] == 1 or not before["low"]:
        return {**finding, "gap": gap, "size": 0.0}
    return {**finding, "gap": gap, "size": max(before["size"], min(gap, before["gap"]))}


def _directions(worse: Worse, marker: str) -> tuple[Direction, ...]:
    if worse == "either":
        return ("lower", "higher")
    if worse == "marker":
        row = MARKERS.get(marker)
        return ((row and row.worse) or "lower",)
    return (worse,)


def _empty(layer: str, marker: str, direction: Direction) -> Track:
    past = Past(
        count=0, first_epoch=math.nan, value=math.nan, steps=[], epochs=[], levels=[], errors=[], change_errors=[]
    )
    nothing = Finding(
        low=0, since_step=0, since_epoch=math.nan, expected=math.nan, noise=math.nan, plain=False, gap=0.0, size=0.0
    )
    return Track(layer=layer, marker=marker, direction=direction, past=past, finding=nothing, own={})


def _with(track: Track, measured: Measured, memory: int) -> Past:
    """The past with one more measurement."""
    past, value = track["past"], measured.value
    error, change = abs(measured.standard_error / (value or SMALLEST)), abs(measured.change_error / (value or SMALLEST))
    error = 0.0 if math.isnan(error) else error
    if track["marker"] in COUNTS and value:  # one more or less is no news
        error = max(error, 0.5 / value)
    return {
        "count": past["count"] + 1,
        "first_epoch": measured.epoch if math.isnan(past["first_epoch"]) else past["first_epoch"],
        "value": value,
        "steps": _latest(past["steps"], measured.step, memory),
        "epochs": _latest(past["epochs"], measured.epoch, memory),
        "levels": _latest(past["levels"], level_of(value, track["direction"]), memory),
        "errors": _latest(past["errors"], error if value else 0.0, memory),  # relative to 0 an error has no size
        "change_errors": _latest(past["change_errors"], math.inf if math.isnan(change) else change, memory),
    }


def _latest(values: list[Number], value: Number, memory: int) -> list[Number]:
    kept = values[max(0, len(values) + 1 - memory) :]
    kept.append(value)  # of a copy
    return kept


def _verdict(track: Track, needed: int) -> Verdict:
    """The finding in terms of the series; ``needed`` low measurements in a row make a decline."""
    finding, value = track["finding"], track["past"]["value"]
    low, epoch = finding["low"], finding["since_epoch"]
    reference = _exp(sign_of(track["direction"]) * finding["expected"])
    return Verdict(
        declined=finding["plain"] or low >= needed,
        layer=track["layer"],
        marker=track["marker"],
        value=value,
        reference=reference,
        standard_error=finding["noise"] * math.sqrt(reference * value),  # so that sigmas equal those in logarithms
        since_step=finding["since_step"] if low else None,
        since_epoch=int(epoch) if low and math.isfinite(epoch) else None,
        checks=low,
        needed=needed,
        direction=track["direction"],
        size=-math.expm1(-finding["size"]),
    )


def _exp(level: float) -> float:
    """Infinite where no number is so large."""
    try:
        return math.exp(level)
    except OverflowError:
        return math.inf
