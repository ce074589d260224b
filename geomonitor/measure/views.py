"""Views go through the model, and give the markers of instances: one more forward pass, of ``P V`` points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from geomonitor._distributed import ALL_PROCESSES, Processes
from geomonitor._threads import threads_for
from geomonitor._warnings import cause_of
from geomonitor.features.capture import Layer, Pool
from geomonitor.features.watched import Written
from geomonitor.glue.instances import INSTANCE_PAIRS, InstanceGeometry, instance_geometry
from geomonitor.glue.options import GeometryOptions
from geomonitor.glue.ranks import ProcessGroup
from geomonitor.markers.instances import VIEW_FORMULAS
from geomonitor.measure.probe_pass import Forward
from geomonitor.measure.truth import points_of
from geomonitor.probe.probe_set import ProbeSet

INSTANCE = "instance_"
"""Prefix of the measures of the manifold geometry of instances."""
VIEW_MARKERS = (*VIEW_FORMULAS, *(INSTANCE + name for name in InstanceGeometry._fields))


def measure_views(
    model: nn.Module,
    layers: Mapping[str, Layer],
    views: ProbeSet,
    markers: tuple[str, ...],
    *,
    geometry: GeometryOptions,
    forward: Forward,
    batch_size: int,
    pool: Pool,
    device: torch.device,
    warn: Callable[[str, str], None],
    written: Written | None = None,
    processes: Processes = ALL_PROCESSES,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Marker and standard error by layer and name; every process makes the same calls.

    A failure is NaN and a warning: the other markers were measured, and stay.

    Args:
        model: left exactly as it was.
        layers: from which to take features, by alias.
        views: the points, instance by instance.
        markers: names, of ``VIEW_MARKERS``.
        geometry: directions, dichotomies, seed and ridge; in pairs of instances, whatever its mode is.
        forward: runs the model on a batch.
        batch_size: points in one forward pass.
        pool: as in ``GeometryMonitor``.
        device: of the model.
        warn: takes a warning and a key of its cause.
        written: what is known of writes of the model to its parameters.
        processes: that measure together.
    """
    undefined = dict.fromkeys(markers, (math.nan, math.nan))
    try:
        points = points_of(
            model, layers, views, forward=forward, batch_size=batch_size, pool=pool, device=device, warn=warn,
            written=written, processes=processes,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - the other markers were measured, and stay
        warn(f"the views cannot be measured, their markers are NaN. {type(error).__name__}: {error}", cause_of(error))
        return {layer: dict(undefined) for layer in layers}
    with threads_for(len(views), device):
        return {
            layer: {**undefined, **(_values(*points[layer], markers, geometry, processes) if layer in points else {})}
            for layer in layers
        }


def _values(
    features: Tensor, instances: Tensor, markers: tuple[str, ...], geometry: GeometryOptions, processes: Processes
) -> dict[str, tuple[float, float]]:
    found = {name: formula(features, instances) for name, formula in VIEW_FORMULAS.items() if name in markers}
    if any(name.startswith(INSTANCE) and name not in VIEW_FORMULAS for name in markers):
        options = dataclasses.asdict(geometry) | {"mode": "pairwise", "pairs": geometry.pairs or INSTANCE_PAIRS}
        ranks = ProcessGroup(processes.group) if processes.size > 1 else None
        measures = instance_geometry(features, instances, ranks=ranks, **options)._asdict()
        found |= {INSTANCE + name: each for name, each in measures.items() if INSTANCE + name in markers}
    return {name: (float(each.value), float(each.standard_error)) for name, each in found.items()}
