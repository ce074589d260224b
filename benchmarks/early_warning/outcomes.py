"""What a warning was worth in one run: right or false, how early, and what stopping at it would have saved."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_warning.trajectories import Run

TRUTH = "unseen_accuracy"
AROUND = 3
"""Epochs that the truth before the onset and at the end is the mean of."""
LEAST_FALL = 0.02
"""Points of accuracy on new classes below which nothing has happened, whatever the noise."""


class Truth(NamedTuple):
    """Whether the truth of a failing run falls, and when half of it is gone."""

    before: float
    """mean of the last epochs before the onset"""
    end: float
    """mean of the last epochs of the run"""
    falls: bool
    """by 0.02 at least and by three standard errors of the difference"""
    half: int | None
    """first epoch from the onset on at which half of the final drop is there; None where the truth does not fall"""


class Outcome(NamedTuple):
    """A run and the first alarm in it."""

    run: Run
    truth: Truth | None
    """None: a healthy run"""
    alarm: int | None
    """epoch of the first alarm"""

    @property
    def counts(self) -> bool:
        """A failing run in which there is something to find."""
        return self.truth is not None and self.truth.falls

    @property
    def false(self) -> bool:
        """An alarm in a healthy run, or before anything was wrong."""
        if self.alarm is None:
            return False
        return self.run.healthy or self.run.onset is None or self.alarm < self.run.onset

    @property
    def found(self) -> bool:
        """A right alarm in a run whose truth falls."""
        return self.counts and self.alarm is not None and not self.false

    @property
    def lead(self) -> int | None:
        """Epochs from the alarm to the moment when half of the fall has happened; negative when late."""
        if not self.found or self.truth is None or self.truth.half is None or self.alarm is None:
            return None
        return self.truth.half - self.alarm

    @property
    def slow(self) -> bool:
        """Half of the fall comes after the first measurement with the fault: before, no warning could be early."""
        return self.truth is not None and self.truth.half is not None and self.truth.half > (self.run.onset or 0)

    def at(self, epoch: int | None) -> float:
        """The truth at an epoch; at the end of the run where there is none."""
        return float(self.run.columns[TRUTH][-1 if epoch is None else epoch])


def truth_of(run: Run) -> Truth | None:
    """The truth of a failing run; None of a healthy one, and of one whose fault never came."""
    if run.healthy or run.onset is None or run.onset < 1:
        return None
    truth = run.columns[TRUTH]
    before, end = truth[max(0, run.onset - AROUND) : run.onset], truth[-AROUND:]
    fall = float(before.mean() - end.mean())
    noise = _scatter(truth[: run.onset]) * math.sqrt(1 / len(before) + 1 / len(end))
    falls = fall > max(LEAST_FALL, 3 * noise)
    low = np.flatnonzero(truth[run.onset :] <= before.mean() - fall / 2)
    return Truth(float(before.mean()), float(end.mean()), falls, run.onset + int(low[0]) if falls else None)


def _scatter(values: NDArray[np.float64]) -> float:
    """Noise of one reading from second differences of the later half: a rise that slows down is none."""
    late = values[len(values) // 2 :]
    return float(np.median(np.abs(np.diff(late, n=2)))) * 1.4826 / math.sqrt(6) if len(late) > 3 else 0.0
