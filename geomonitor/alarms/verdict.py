"""What a verdict is: whether a marker has declined, and the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from geomonitor.history.records import Series

Direction = Literal["lower", "higher"]


class Verdict(NamedTuple):
    """Whether a marker has declined, and the evidence."""

    declined: bool
    layer: str
    marker: str
    value: float = math.nan
    """latest finite value; NaN if there is none"""
    reference: float = math.nan
    """what it is judged against; NaN during warm-up"""
    standard_error: float = math.nan
    """noise of ``value - reference``: the larger of sampling error and scatter of the series; NaN during warm-up"""
    since_step: int | None = None
    """first measurement of the decline, in optimiser steps; None while nothing declines"""
    since_epoch: int | None = None
    """the same in epochs; None also where epochs are not known"""
    checks: int = 0
    """declining measurements in a row"""
    needed: int = 1
    """how many of them make a decline of this marker alone"""
    direction: Direction = "lower"
    """direction of the change; a rise is a decline if the marker is worse when higher"""
    agreeing: tuple[str, ...] = ()
    """other watched markers of the layer whose latest measurement is also low"""
    size: float = 0.0
    """largest relative change against the expected value that two measurements in a row exceeded in this decline; 0 if
    there were no two"""
    calibrated: bool = False
    """of a layer: judged by the panel whose rates ``docs/carry_over.md`` has"""
    pending: bool = False
    """of a layer: one more measurement like this one makes an alarm"""
    noticed: bool = False
    """of a layer: its representation has changed beyond the noise; ``declined``: by as much as comes with harm"""

    def __repr__(self) -> str:
        state = "alarm" if self.declined else "notice" if self.noticed else "no decline"
        since = "" if self.since_step is None else f" since step {self.since_step}"
        numbers = f"{self.marker} {self.value:.4g}, expected {self.reference:.4g}"
        return f"Verdict({state} of {self.layer!r}{since}: {numbers})"

    settled: bool = True
    """of a layer: its warm-up is over, so that changes below the size of an alarm are also judged"""

    @property
    def change(self) -> float:
        """Relative change against the reference, for instance ``-0.25``."""
        return self.value / self.reference - 1

    @property
    def share(self) -> float:
        """Share of a vote: 1 for a decline, less while there are fewer declining measurements than it needs."""
        return 1.0 if self.declined else self.checks / self.needed if self.checks < self.needed else 0.0

    @property
    def sigmas(self) -> float:
        """Size of the change in units of its standard error; infinite if the series has no noise."""
        return abs(self.value - self.reference) / self.standard_error if self.standard_error else math.inf


Detector = Callable[[Series], Verdict]
"""Any function that judges a series by its numbers alone. It sees the whole series at each measurement; one that is a
:class:`geomonitor.alarms.detectors.IncrementalDetector` sees the new measurement only, at constant cost."""
