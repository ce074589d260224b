"""What one measurement leaves: a record a marker; and the series of one marker over a run."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor.markers.coherence import NETWORK_COHERENCE

ALARM = "alarm"
"""Marker name of the verdict: 1 during an alarm, 0 otherwise, NaN if the measurement or the detector failed."""
NOTICE = "notice"
"""Marker name of whether the representation has changed beyond the noise: 1, 0, or NaN as ``alarm``."""
ANNOUNCED = "announced"
"""Marker name of the first measurement after a planned change (value 1), which starts the reference anew; its layer is
""."""
JUDGED = "judged"
"""Marker name of whether the layer could be judged: 0 while it is too early, and if nothing could be measured."""
SECONDS = "seconds"
"""Marker name of what a measurement cost, in seconds of wall-clock time; its layer is ""."""
OVERHEAD = "overhead"
"""Marker name of these seconds as a share of the wall-clock time since the measurement before; its layer is ""."""

COST_GROUP = "geometry_cost"
"""First word of the keys of what belongs to a whole measurement."""


class Record(NamedTuple):
    """One marker of one layer at one step of training."""

    step: int
    """optimiser steps done"""
    epoch: int | None
    """epoch, from 0; None in a loop that does not count them"""
    layer: str
    """alias of the layer, or "" for what belongs to the whole measurement"""
    marker: str
    value: float
    """NaN if the marker is undefined or the measurement failed"""
    standard_error: float = math.nan
    """NaN if the marker has no sampling error"""
    time: float = math.nan
    """seconds since 1970 (UTC) at the measurement; NaN if it is not known"""
    change_error: float = math.nan
    """standard error of the change since the measurement before, whose draws are the same; NaN where not known"""

    @property
    def key(self) -> str:
        """Name under which loggers get the value: ``geometry/<layer>/<marker>``, ``geometry_cost/seconds``.

        What is measured of the whole network has no layer: ``geometry/network_coherence``.

        What a measurement costs is in a group of its own, which TensorBoard shows after the geometry.
        """
        if self.marker == NETWORK_COHERENCE:
            return f"geometry/{self.marker}"
        return f"geometry/{self.layer}/{self.marker}" if self.layer else f"{COST_GROUP}/{self.marker}"


class Series(NamedTuple):
    """One marker of one layer over time, in the order of the steps; all arrays have length ``n``."""

    layer: str
    marker: str
    steps: NDArray[np.int64]
    epochs: NDArray[np.float64]
    """NaN if the epoch is not known"""
    values: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    change_errors: NDArray[np.float64] | None = None
    """of the change since the measurement before, with common draws; NaN or None where not known"""

    def until(self, step: int) -> Series:
        """The series as it was when step ``step`` had just been measured."""
        seen = slice(0, int(np.searchsorted(self.steps, step, side="right")))
        changes = self.change_errors
        return Series(
            self.layer,
            self.marker,
            self.steps[seen],
            self.epochs[seen],
            self.values[seen],
            self.standard_errors[seen],
            None if changes is None else changes[seen],
        )
