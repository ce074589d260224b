"""What a detector would have said during a run whose history is saved: another setting is tried in a second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor.alarms.detectors.readings import Walker
from geomonitor.alarms.verdict import Detector, Verdict, check_votes, count_votes, enough_votes
from geomonitor.errors import InputError
from geomonitor.history.history import History
from geomonitor.history.records import Series


class Episode(NamedTuple):
    """An alarm from its first measurement to the one that ended it."""

    step: int
    """optimiser steps at the alarm"""
    epoch: int | None
    end_step: int | None
    """first measurement without the alarm; None: it lasted to the end"""
    verdict: Verdict
    """as it was at the alarm"""


def replay(history: History, layer: str, watch: Sequence[str], detector: Detector, votes: float = 1) -> list[Episode]:
    """All alarms of a run, as they would have come, one measurement after the other.

    Args:
        history: of the whole run.
        layer: alias of the layer.
        watch: names of the markers that the detector judges.
        detector: judges each of them.
        votes: see :func:`geomonitor.alarms.verdict.judge`.

    Raises:
        InputError: a layer or a marker that the history does not have, or votes that can never be reached.

    >>> from geomonitor import DropFromReference, Record
    >>> values = [2.0] * 10 + [1.2] * 5
    >>> history = History(Record(10 * n, n, "fc", "dimension", value) for n, value in enumerate(values))
    >>> [(alarm.epoch, alarm.end_step) for alarm in replay(history, "fc", ["dimension"], DropFromReference())]
    [(11, None)]
    """
    check_votes(watch, votes)
    series = [history.series(layer, marker) for marker in watch]
    missing = [one.marker for one in series if not len(one.steps)]
    if missing:
        raise InputError(f"the history has no values of {', '.join(missing)} for the layer {layer!r}")
    epochs = {
        int(step): int(epoch) if math.isfinite(epoch) else None
        for one in series
        for step, epoch in zip(one.steps, one.epochs, strict=True)
    }
    steps = np.array(sorted(epochs), dtype=np.int64)
    verdicts = _Verdicts(series, detector, votes)
    if isinstance(detector, Walker):  # one walk tells where alarms begin and end
        steps = steps[_changes(_declines(series, steps, detector, votes))]
    episodes: list[Episode] = []
    for step in steps.tolist():
        verdict = verdicts.at(step)
        running = bool(episodes) and episodes[-1].end_step is None
        if verdict.declined and not running:
            episodes.append(Episode(step, epochs[step], None, verdict))
        elif running and not verdict.declined:
            episodes[-1] = episodes[-1]._replace(end_step=step)
    return episodes


class _Verdicts(NamedTuple):
    series: Sequence[Series]
    detector: Detector
    votes: float

    def at(self, step: int) -> Verdict:
        return count_votes([self.detector(one.until(step)) for one in self.series], self.votes)


def _declines(series: Sequence[Series], steps: NDArray[np.int64], detector: Walker, votes: float) -> NDArray[np.bool_]:
    """Whether the layer was in decline at each of ``steps``."""
    shares = [np.r_[0.0, detector.shares(one)][np.searchsorted(one.steps, steps, side="right")] for one in series]
    return enough_votes([one.marker for one in series], shares, votes)


def _changes(declined: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.diff(declined, prepend=False).astype(bool)
