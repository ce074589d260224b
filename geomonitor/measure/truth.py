"""The transfer probe goes through the model, and gives accuracies on new classes: one more forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geomonitor._distributed import ALL_PROCESSES, Processes
from geomonitor._threads import threads_for
from geomonitor._warnings import cause_of
from geomonitor.features.capture import Layer, Pool
from geomonitor.features.watched import Written
from geomonitor.glue.options import GeometryOptions
from geomonitor.markers.table import TRUTH
from geomonitor.markers.transfer import few_shot_is_right, neighbors_are_right, ridge_is_right, share
from geomonitor.measure.measurement import Measurement, Plan
from geomonitor.measure.probe_pass import Forward, probe_pass
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.transfer import TransferProbe


class Truth(NamedTuple):
    """What a transfer probe gives."""

    values: dict[str, dict[str, tuple[float, float]]]
    """accuracy and standard error by layer and name, the names of ``TRUTH``"""
    influences: dict[str, Tensor]
    """by ``layer/name``: which cases were right, ``(n,)``, for the error of a change"""


def measure_truth(
    model: nn.Module,
    layers: Mapping[str, Layer],
    truth: TransferProbe,
    known: Mapping[str, tuple[Tensor, Tensor]],
    *,
    forward: Forward,
    batch_size: int,
    pool: Pool,
    device: torch.device,
    warn: Callable[[str, str], None],
    written: Written | None = None,
    processes: Processes = ALL_PROCESSES,
) -> Truth:
    """Measure transfer; every process makes the same calls. A failure is NaN and a warning, the geometry stays.

    Args:
        model: left exactly as it was.
        layers: from which to take features, by alias.
        truth: the points.
        known: points and classes of the probe set by layer, as they were measured.
        forward: runs the model on a batch, whose output is not used.
        batch_size: points in one forward pass.
        pool: as in ``GeometryMonitor``.
        device: of the model.
        warn: takes a warning and a key of its cause.
        written: what is known of writes of the model to its parameters.
        processes: that measure together.
    """
    probe = truth.probe
    try:
        new = points_of(
            model, layers, probe, forward=forward, batch_size=batch_size, pool=pool, device=device, warn=warn,
            written=written, processes=processes,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - the geometry was measured, and stays
        warn(f"transfer cannot be measured, its values are NaN. {type(error).__name__}: {error}", cause_of(error))
        return nothing_true(list(layers))
    values: dict[str, dict[str, tuple[float, float]]] = {}
    influences: dict[str, Tensor] = {}
    with threads_for(len(probe), device):
        for layer in layers:
            found = _cases(new.get(layer), known.get(layer))
            values[layer] = {name: share(found[name]) if name in found else (math.nan, math.nan) for name in TRUTH}
            influences |= {f"{layer}/{name}": right.cpu() for name, right in found.items()}
    return Truth(values, influences)


def points_of(
    model: nn.Module,
    layers: Mapping[str, Layer],
    probe: ProbeSet,
    *,
    forward: Forward,
    batch_size: int,
    pool: Pool,
    device: torch.device,
    warn: Callable[[str, str], None],
    written: Written | None = None,
    processes: Processes = ALL_PROCESSES,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Features ``(Q, N)`` and class numbers ``(Q,)`` of a probe set by layer, class by class, equal in all processes.

    Args:
        model: left exactly as it was.
        layers: from which to take features, by alias.
        probe: the points.
        forward: runs the model on a batch.
        batch_size: points in one forward pass.
        pool: as in ``GeometryMonitor``.
        device: of the model.
        warn: takes a warning and a key of its cause.
        written: what is known of writes of the model to its parameters.
        processes: that measure together.

    Returns:
        Without layers in which a class has fewer than two points with finite features.
    """
    plan = Plan(probe.classes, probe.per_class, (), (), GeometryOptions())
    measurement = Measurement(plan, layers, {}, device, warn, processes=processes)
    run = partial(probe_pass, forward=forward, batch_size=batch_size, pool=pool, shifts={}, written=written)
    measurement.compute_after(lambda: run(model, layers, probe, measurement))
    return measurement.points


def nothing_true(layers: list[str]) -> Truth:
    """NaN throughout."""
    return Truth({layer: dict.fromkeys(TRUTH, (math.nan, math.nan)) for layer in layers}, {})


def _cases(new: tuple[Tensor, Tensor] | None, known: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
    """Which cases are right, by name; without what has no finite points."""
    found: dict[str, Tensor] = {}
    if new is not None:
        functions = {"accuracy": ridge_is_right, "few_shot": few_shot_is_right, "knn": neighbors_are_right}
        found |= {f"transfer_{name}": function(*new) for name, function in functions.items()}
    if known is not None:
        found["knn_accuracy"] = neighbors_are_right(*known)
    return found
