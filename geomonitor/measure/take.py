"""One measurement, whole: points from the probe set or from the validation loop, through the model, into markers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from geomonitor._distributed import all_processes
from geomonitor._random import preserved_rng
from geomonitor.features.capture import Pool, resolve_layers
from geomonitor.features.isolation import undisturbed
from geomonitor.features.outputs import head_of
from geomonitor.measure.measurement import ElsewhereError, Measurement, Plan
from geomonitor.measure.passive import ValidationPass
from geomonitor.measure.probe_pass import Forward, device_of, probe_pass
from geomonitor.measure.truth import measure_truth
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.shifts import Shift


class Taken(NamedTuple):
    """What a measurement gives."""

    values: dict[str, dict[str, tuple[float, float]]]
    """marker and standard error, by layer and name"""
    latest_points: dict[str, Tensor]
    """features of the probe by layer, if the drift is measured"""
    influences: dict[str, Tensor]
    """``(T, 10)`` by layer: what each direction adds to the errors of the geometry; cases by ``layer/marker``"""
    points: dict[str, tuple[Tensor, Tensor]]
    """points ``(Q, N)`` and classes ``(Q,)`` by layer, if they were held"""
    fingerprint: str | None
    """of the points that a validation loop gave"""
    dtypes: dict[str, str]
    """dtype in which each layer computed, such as ``"float32"``"""


class Known(NamedTuple):
    """What earlier measurements left."""

    references: Mapping[str, Tensor]
    """features to which the drift is measured, by layer"""
    fingerprint: str | None
    """of the points that a validation loop gave"""


class HowToRun(NamedTuple):
    """How the probe set goes through the model."""

    forward: Forward
    batch_size: int
    pool: Pool
    shifts: Mapping[str, Shift | None]


@preserved_rng()
def take_measurement(
    model: nn.Module,
    layers: str | Sequence[str] | Mapping[str, str],
    source: ProbeSet | ValidationPass,
    plan: Plan,
    *,
    how: HowToRun,
    known: Known,
    warn: Callable[[str, str], None],
) -> Taken:
    """Measure a model; every process makes the same calls, whatever happens in it.

    In one process one measurement runs at a time: a second thread waits.

    Args:
        model: left exactly as it was. Its code, parametrisations of weights included, runs in isolation only.
        layers: which layers to measure, as in ``GeometryMonitor``.
        source: the probe set, or the points that a validation pass has collected.
        plan: what to measure.
        how: how the probe set is run.
        known: what earlier measurements left.
        warn: takes a warning and a key of its cause.

    Raises:
        Exception: what failed in this process.
        ElsewhereError: it failed in another one.
    """
    device = device_of(model)
    failure: Exception | None = None
    try:
        found = resolve_layers(model, layers)
        with undisturbed(model, warn):  # reading a parametrised weight runs code of the model
            heads = {alias: head_of(model, layer, plan.classes) for alias, layer in found.items()}
        measurement = Measurement(plan, heads, known.references, device, warn)
    except Exception as error:  # noqa: BLE001 - raised below, once the other processes know
        failure = error
    if not all_processes(failure is None, device):
        raise failure or ElsewhereError("the measurement could not begin in another process")
    if isinstance(source, ValidationPass):
        values = measurement.compute_after(lambda: source.add_to(measurement, known=known.fingerprint))
    else:
        values = measurement.compute_after(partial(probe_pass, model, found, source, measurement, **how._asdict()))
    influences = measurement.influences
    if plan.truth is not None:
        truth = measure_truth(
            model, found, plan.truth, measurement.points, forward=how.forward, batch_size=how.batch_size,
            pool=how.pool, device=device, warn=warn,
        )  # fmt: skip
        values = {layer: {**of_layer, **truth.values[layer]} for layer, of_layer in values.items()}
        influences = {**influences, **truth.influences}
    return Taken(
        values,
        measurement.latest_points,
        influences,
        measurement.points,
        source.points if isinstance(source, ValidationPass) else None,
        measurement.dtypes,
    )


def nothing_taken(aliases: Sequence[str], plan: Plan, known: Known) -> Taken:
    """NaN throughout, in the place of a measurement that failed."""
    undefined = dict.fromkeys(plan.names, (math.nan, math.nan))
    return Taken(dict.fromkeys(aliases, undefined), {}, {}, {}, known.fingerprint, {})
