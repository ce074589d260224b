"""One measurement, whole: points from the probe set or from the validation loop, through the model, into markers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from geomonitor._random import preserved_rng
from geomonitor.features.capture import Pool
from geomonitor.features.isolation import undisturbed
from geomonitor.features.linear_head import Head, head_of
from geomonitor.features.routers import find_routers
from geomonitor.markers.coherence import NETWORK_COHERENCE
from geomonitor.markers.routing_layers import ROUTING_MARKERS
from geomonitor.measure.agreement import Agreement
from geomonitor.measure.buffers import buffers_of_first
from geomonitor.measure.identity import Identity, agreed, points_at_once
from geomonitor.measure.measurement import ElsewhereError, Measurement, Plan
from geomonitor.measure.network_coherence import coherence_beside
from geomonitor.measure.passive import ValidationPass
from geomonitor.measure.probe_pass import Forward, device_of, probe_pass
from geomonitor.measure.tokens import TokenLength
from geomonitor.measure.truth import measure_truth
from geomonitor.measure.views import VIEW_MARKERS, measure_views
from geomonitor.measure.where import Where
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
    identity: Identity | None
    """what later measurements have to share; None if nothing was measured"""
    routing: dict[str, dict[str, tuple[float, float]]]
    """marker and standard error, by path of the router and name"""
    whole: dict[str, tuple[float, float]]
    """marker and standard error of the whole network by name"""


class Known(NamedTuple):
    """What earlier measurements left."""

    references: Mapping[str, Tensor]
    """features to which the drift is measured, by layer"""
    fingerprint: str | None
    """of the points that a validation loop gave"""
    identity: Identity | None
    """what measurements have to share"""


class HowToRun(NamedTuple):
    """How the probe set goes through the model."""

    forward: Forward
    batch_size: int
    pool: Pool
    shifts: Mapping[str, Shift | None]


@preserved_rng()
def take_measurement(
    model: nn.Module,
    where: Where,
    source: ProbeSet | ValidationPass,
    plan: Plan,
    *,
    how: HowToRun,
    known: Known,
    agreement: Agreement,
    length: TokenLength,
) -> Taken:
    """Measure a model; every process makes the same calls, whatever happens in it.

    In one process one measurement runs at a time: a second thread waits.

    Args:
        model: left exactly as it was. Its code, parametrisations of weights included, runs in isolation only.
        where: which layers to measure.
        source: the probe set, or the points that a validation pass has collected.
        plan: what to measure.
        how: how the probe set is run.
        known: what earlier measurements left.
        agreement: of the processes, which has been reached.
        length: what the series knows of the length of its sequences.

    Raises:
        Exception: what failed in this process.
        ElsewhereError: it failed in another one.
    """
    device, processes, warn = device_of(model), agreement.processes, agreement.warn
    failure: Exception | None = None
    try:
        if isinstance(source, ProbeSet):
            found = where.find(model, source, forward=how.forward, batch_size=how.batch_size, warn=warn, pool=how.pool)
        else:
            found = where.in_place(model)
        columns = source.logit_columns if isinstance(source, ProbeSet) else plan.classes
        place = where.logits if isinstance(source, ProbeSet) else None  # a validation pass gives the logits alone

        def read_heads(widths: Mapping[str, int]) -> dict[str, Head]:
            with undisturbed(model, warn, where.written):  # also reading a parametrised weight runs code of the model
                return {
                    alias: Head(reason=where.no_heads[alias])
                    if alias in where.no_heads
                    else head_of(model, layer, columns, width=widths[alias], gives_logits=alias in where.heads)
                    for alias, layer in found.items()
                }

        measurement = Measurement(
            plan, found, known.references, device, warn, logits=place,
            has_logits=where.has_logits and bool(columns), read_heads=read_heads, processes=processes,
        )  # fmt: skip
        if plan.routed:
            measurement.routing.take_weights(find_routers(model, plan.routers))
    except Exception as error:  # noqa: BLE001 - raised below, once the other processes know
        failure = error
    if not processes.all(failure is None, device):
        raise failure or ElsewhereError("the measurement could not begin in another process")

    def collect() -> None:
        if isinstance(source, ValidationPass):
            source.add_to(measurement, known=known.fingerprint)
        else:
            options = how._asdict() | {"compare_batches": not agreement.complete, "length": length}
            options |= {"read": where.read if how.pool == "auto" else {}, "place": where.logits}
            options |= {"written": where.written}
            probe_pass(model, found, source, measurement, **options)
        if known.identity is not None:
            known.identity.require_dtypes(measurement.dtypes)

    with buffers_of_first(model, processes):
        values = measurement.compute_after(collect)
        influences = measurement.influences
        if plan.truth is not None:
            # Nearest neighbours of points without labels would all be of one class.
            labelled = measurement.points if getattr(source, "labelled", True) else {}
            truth = measure_truth(
                model, found, plan.truth, labelled, forward=how.forward, batch_size=how.batch_size,
                pool=how.pool, device=device, warn=warn, written=where.written, processes=processes,
            )  # fmt: skip
            values = {layer: {**of_layer, **truth.values[layer]} for layer, of_layer in values.items()}
            influences = {**influences, **truth.influences}
        asked = tuple(name for name in plan.markers if name in VIEW_MARKERS)
        if plan.views is not None and asked:
            of_views = measure_views(
                model, found, plan.views, asked, geometry=plan.geometry, forward=how.forward, batch_size=how.batch_size,
                pool=how.pool, device=device, warn=warn, written=where.written, processes=processes,
            )  # fmt: skip
            values = {layer: {**of_layer, **of_views[layer]} for layer, of_layer in values.items()}
    whole: dict[str, tuple[float, float]] = {}
    if plan.coherence_probe is not None:
        whole[NETWORK_COHERENCE] = coherence_beside(
            model, plan.coherence_probe, forward=how.forward, loss=plan.coherence_loss, warn=warn, written=where.written
        )
    identity = known.identity
    if not agreement.complete:
        at_once = points_at_once(source, how.batch_size, processes.size) if isinstance(source, ProbeSet) else 0
        identity = agreed(processes, measurement.dtypes, measurement.batch_matters, at_once)
    return Taken(
        values,
        measurement.latest_points,
        influences,
        measurement.points,
        source.points if isinstance(source, ValidationPass) else None,
        identity,
        measurement.routing.by_layer,
        whole,
    )


def nothing_taken(aliases: Sequence[str], plan: Plan, known: Known, routers: Sequence[str] = ()) -> Taken:
    """NaN throughout, in the place of a measurement that failed."""
    undefined = dict.fromkeys(plan.names, (math.nan, math.nan))
    of_router = {name: undefined[name] for name in plan.names if name in ROUTING_MARKERS}
    routing = dict.fromkeys(routers, of_router)
    whole = {} if plan.coherence_probe is None else {NETWORK_COHERENCE: (math.nan, math.nan)}
    return Taken(dict.fromkeys(aliases, undefined), {}, {}, {}, known.fingerprint, known.identity, routing, whole)
