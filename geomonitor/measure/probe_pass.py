"""The probe set goes through the model, without a trace, into a measurement."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomonitor.errors import MeasurementError
from geomonitor.features.capture import Features, Layer, Pool, captured
from geomonitor.features.isolation import undisturbed
from geomonitor.features.network import network_in
from geomonitor.features.outputs import logits_in
from geomonitor.features.pooling import TokensAt
from geomonitor.features.reading import Read, require_reading
from geomonitor.features.routing import LayerRouting, captured_routing
from geomonitor.features.watched import Written
from geomonitor.measure.dropout_views import dropping
from geomonitor.measure.identity import depends_on_batch, require_order
from geomonitor.measure.masks import mask_of, mask_of_routers
from geomonitor.measure.measurement import Measurement
from geomonitor.measure.tokens import (
    TOKEN_ENTROPY,
    SequenceEntropies,
    TokenLength,
    mask_of_tokens,
    outputs_at,
    sequences_of,
)
from geomonitor.probe.batches import ProbeBatch
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.shifts import Shift, shifted

Forward = Callable[[nn.Module, Any], Any]
ALONE = 2
"""Points of the first batch that also run without the others; a single one is more than some models can do."""
_INPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def probe_pass(
    model: nn.Module,
    layers: Mapping[str, Layer],
    probe: ProbeSet,
    measurement: Measurement,
    *,
    forward: Forward,
    batch_size: int,
    pool: Pool,
    shifts: Mapping[str, Shift | None],
    compare_batches: bool = False,
    length: TokenLength | None = None,
    read: Mapping[str, Read] | None = None,
    place: str | None = None,
    written: Written | None = None,
) -> None:
    """Run this process's part of the probe set through the model into the measurement.

    Args:
        model: left exactly as it was, see :func:`geomonitor.features.isolation.undisturbed`.
        layers: from which to take features, by alias.
        probe: the source of the points.
        measurement: that takes features and outputs.
        forward: runs the model on a batch, whose floating inputs have the dtype of the model's weights.
        batch_size: points in one forward pass.
        pool: see :func:`geomonitor.features.capture.captured`.
        shifts: input shifts by name, each one more forward pass.
        compare_batches: also run two points of the first batch alone, to see whether the features of a point depend
            on the others: ``measurement.batch_matters``.
        length: what the series knows of the length of its sequences, if the entropy of their tokens is to be measured.
        read: heads of which the model reads tokens by a rule, which has to hold in every batch.
        place: which output holds what it reads.
        written: what is known of writes of the model to its parameters.
    """
    device, dtype = device_of(model), dtype_of(model)
    first: tuple[Tensor, Mapping[str, Tensor]] | None = None
    wanted = TOKEN_ENTROPY in measurement.plan.markers and length is not None
    chosen = sequences_of(probe) if wanted else torch.zeros(0, dtype=torch.int64)
    common = (
        length.find(probe, lambda inputs: mask_of(model, inputs, layers.values()))
        if wanted and length is not None
        else None
    )

    def run(batch: ProbeBatch, inputs: Any) -> _Passed:
        mask, tokens, how = mask_of(model, inputs, layers.values()), batch.tokens, probe.how_viewed
        which = None if tokens is None else TokensAt(tokens.rows, tokens.places)
        own = mask if which is None else mask_of_tokens(inputs)
        entropies: Features | None = None
        routing: dict[str, LayerRouting] | None = None
        numbers = batch.ids if tokens is None else tokens.sequences
        with ExitStack() as stack:
            features = stack.enter_context(captured(model, layers, pool=which or pool, mask=own))
            checked = read if read and which is None and how is None else {}
            of_heads = {alias: head.layer for alias, head in checked.items()}
            rows = stack.enter_context(captured(model, of_heads, mask=own)) if checked else {}
            if how is not None and how.kind == "dropout":
                stack.enter_context(dropping(model, probe, batch.ids))
            if measurement.plan.routed:
                names = measurement.plan.routers
                seen = mask_of_routers(model, inputs, names)
                how_many = None if seen is not None else max(1, len(numbers))
                routers = stack.enter_context(captured_routing(model, names, mask=seen, items=how_many))
                routing = routers
            if wanted:
                taken = SequenceEntropies(torch.isin(numbers, chosen), common)
                entropies = stack.enter_context(captured(model, layers, pool=taken, mask=mask))
            output = forward(model, to_dtype(inputs, dtype))
        if checked and len(batch.labels):
            require_reading(rows, logits_in(output, measurement.plan.classes, place), checked)
        picked = output if which is None else outputs_at(output, which, own)
        return _Passed(features, picked, numbers, entropies, routing)

    processes = measurement.processes
    with undisturbed(model, measurement.warn, written):
        # In lockstep every process runs as many forward passes as the others: sharded models need that.
        for batch in probe.loader(batch_size, rank=processes.rank, world_size=processes.size, lockstep=True):
            inputs = to_device(batch.inputs, device)
            passed = run(batch, inputs)
            features, output, numbers = passed[:3]
            outputs, first = {"": output}, first or (batch.ids, features)
            measurement.dtypes |= features.dtypes
            for name, shift in shifts.items():
                moved = shifted(name, shift, inputs, batch.ids)
                outputs[name] = (
                    forward(model, to_dtype(moved, dtype)) if batch.tokens is None else run(batch, moved).output
                )
            measurement.update(features, outputs, batch.labels, batch.ids)
            if passed.entropies is not None:
                measurement.update_sequences(passed.entropies, numbers)
            if passed.routing is not None:
                measurement.routing.update(passed.routing, numbers)
        if compare_batches and first is not None:  # in lockstep: also a process that has only borrowed inputs
            try:
                few = probe.batch_of(_others(first[0], probe))
                fewer = run(few, to_device(few.inputs, device)).features
                measurement.batch_matters = bool(len(first[0])) and depends_on_batch(first[1], fewer)
            except Exception:  # noqa: BLE001 - of a model that takes this batch size alone
                measurement.batch_matters = True
            else:
                require_order(first[1] if len(first[0]) else {}, fewer)


class _Passed(NamedTuple):
    """What a forward pass of a batch gives."""

    features: Features
    output: Any
    items: Tensor
    """numbers of the items of the batch"""
    entropies: Features | None
    routing: dict[str, LayerRouting] | None


def _others(ids: Tensor, probe: ProbeSet) -> Tensor:
    """The points of the first two items of a batch: few, so that what depends on the batch shows; or one item more."""
    numbers = probe.item_numbers[ids]
    items = torch.unique_consecutive(numbers)
    if not len(ids) or len(items) > ALONE:
        return ids[torch.isin(numbers, items[:ALONE])]
    return torch.cat([ids, probe.points_of((items[-1:] + 1) % probe.items)[:1]])


def call(model: nn.Module, inputs: Any) -> Any:
    """The model on a batch as it is usually called: a mapping gives keywords, a tuple positions.

    Of a model without a ``forward`` of its own, such as a ``LightningModule`` whose steps call ``self.network``, the
    network that it holds is called, if this is a single one.

    Raises:
        MeasurementError: it has no ``forward``, and not one network; its ``forward`` takes other arguments.
    """
    model = network_in(model)
    arguments = inputs if isinstance(inputs, (tuple, list)) else () if isinstance(inputs, Mapping) else (inputs,)
    named = inputs if isinstance(inputs, Mapping) else {}
    try:
        return model(*arguments, **named)
    except (NotImplementedError, TypeError) as error:  # no forward at all, or one of other arguments?
        missing = "_forward_unimplemented" in str(error)  # Lightning's modules pass anything on to it
        if isinstance(error, TypeError) and not missing and _takes(model.forward, arguments, named):
            raise  # an error within the model
        raise MeasurementError(
            f"{type(model).__name__} cannot be called on the inputs of the probe set: {error}. Give "
            "forward=, a function of (model, inputs) that runs it"
        ) from error


def _takes(function: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(function).bind(*arguments, **named)
    except TypeError:
        return False
    return True


def device_of(model: nn.Module) -> torch.device:
    """The device for inputs: of the first parameter, also of a model spread over several devices."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def to_device(inputs: Any, device: torch.device) -> Any:
    """Inputs on a device; recursive in tuples and mappings; what cannot be moved stays."""
    if isinstance(inputs, Mapping):
        return {name: to_device(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(to_device(value, device) for value in inputs)
    return inputs.to(device) if hasattr(inputs, "to") else inputs


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """What floating inputs are cast to: the dtype of the first floating parameter, which meets them first."""
    return next((p.dtype for p in model.parameters() if p.dtype in _INPUT_DTYPES), None)


def to_dtype(inputs: Any, dtype: torch.dtype | None) -> Any:
    """Floating inputs in a dtype; tuples and mappings are gone through, all others (integer ids) stay."""
    if isinstance(inputs, Mapping):
        return {name: to_dtype(value, dtype) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(to_dtype(value, dtype) for value in inputs)
    casts = dtype is not None and isinstance(inputs, Tensor) and inputs.dtype in _INPUT_DTYPES
    return inputs.to(dtype) if casts else inputs
