"""What a measurement costs, found by making one."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

from torch import nn

from geomonitor.features.isolation import undisturbed
from geomonitor.measure.probe_pass import Forward, device_of, dtype_of, to_device, to_dtype
from geomonitor.probe.probe_set import ProbeSet

MEBIBYTE = 2**20


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


def forward_seconds(model: nn.Module, probe: ProbeSet, forward: Forward, batch_size: int) -> float:
    """Seconds of a forward pass over the probe set, loading included.

    Args:
        model: left as it was.
        probe: the points.
        forward: runs the model on a batch.
        batch_size: points at once.
    """
    device, dtype = device_of(model), dtype_of(model)
    with undisturbed(model, lambda *_: None):
        started = perf_counter()
        for batch in probe.loader(batch_size):
            forward(model, to_dtype(to_device(batch.inputs, device), dtype))
        return perf_counter() - started
