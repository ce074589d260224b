"""What a measurement costs: found by making one, and logged at the first one of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from time import perf_counter
from typing import Any, NamedTuple

from torch import nn

from geomonitor.features.isolation import undisturbed
from geomonitor.features.watched import Written
from geomonitor.measure.probe_pass import device_of, dtype_of, to_device, to_dtype
from geomonitor.measure.series import MeasurementSeries
from geomonitor.measure.take import HowToRun
from geomonitor.probe.probe_set import ProbeSet

LOG = logging.getLogger("geomonitor")
MEBIBYTE = 2**20
FLOAT64_BYTES = 8


class Estimate(NamedTuple):
    """Cost of one measurement.

    >>> Estimate(seconds=0.5, forward_seconds=0.2, points_bytes=3 * MEBIBYTE)
    a measurement takes 0.5 s (2.5 times a forward pass over the probe set, 0.2 s) and holds 3 MiB of points
    """

    seconds: float
    """of the first measurement, which also finds the layer"""
    forward_seconds: float
    """of a forward pass over the probe set without measuring; a part of ``seconds``"""
    points_bytes: int
    """held while measuring: features ``(Q, N)`` of all layers, in float64"""

    @property
    def share(self) -> float:
        """``seconds`` by ``forward_seconds``."""
        return self.seconds / self.forward_seconds

    def __repr__(self) -> str:
        return (
            f"a measurement takes {self.seconds:.2g} s ({self.share:.2g} times a forward pass over the probe set, "
            f"{self.forward_seconds:.2g} s) and holds {self.points_bytes / MEBIBYTE:.2g} MiB of points"
        )


def estimated(
    model: nn.Module, probe: ProbeSet, series: MeasurementSeries, how: HowToRun, settings: Mapping[str, Any]
) -> Estimate:
    """Make the first measurement of a series, of which nothing is kept.

    Args:
        model: left as it was.
        probe: the points.
        series: a fresh one.
        how: how the probe set is run.
        settings: what has to be alike in all processes.

    Raises:
        Exception: what makes the measurement fail.
    """
    started = perf_counter()
    taken, _ = series.take(model, step=0, how=how, validation=None, settings=settings, on_error="raise")
    held = sum(points.numel() * FLOAT64_BYTES for points, _ in taken.points.values())
    seconds = perf_counter() - started
    return Estimate(seconds, _forward_seconds(model, probe, how, series.where.written), held)


def log_cost(seconds: float, overhead: float, limit: float | None) -> None:
    """One line, at the first measurement of a run.

    Args:
        seconds: that it took.
        overhead: its share of the training time since the start; NaN if that is not known.
        limit: of this share, if there is one.
    """
    share = "" if math.isnan(overhead) else f", {overhead:.1%} of the training time since the start"
    limited = "max_overhead=0.05 would limit" if limit is None else f"max_overhead={limit:g} limits"
    LOG.info("the first measurement took %.2g s%s; %s this share by measuring less often", seconds, share, limited)


def _forward_seconds(model: nn.Module, probe: ProbeSet, how: HowToRun, written: Written) -> float:
    """Seconds of a forward pass over the probe set, loading included."""
    device, dtype = device_of(model), dtype_of(model)
    with undisturbed(model, lambda *_: None, written):
        started = perf_counter()
        for batch in probe.loader(how.batch_size):
            how.forward(model, to_dtype(to_device(batch.inputs, device), dtype))
        return perf_counter() - started
