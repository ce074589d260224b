"""One batch of a validation loop, whose forward pass is the loop's own: features, and the logits beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomonitor.errors import MeasurementError
from geomonitor.features.capture import Features, Pool, captured
from geomonitor.features.kept import sharded
from geomonitor.features.layers import Layer, plain_modules
from geomonitor.features.network import network_in
from geomonitor.features.outputs import logits_in
from geomonitor.features.reading import Read, require_reading
from geomonitor.features.routers import RouterNames
from geomonitor.features.routing import LayerRouting, captured_routing
from geomonitor.measure.masks import mask_of, mask_of_routers
from geomonitor.measure.probe_pass import Forward, device_of, to_device
from geomonitor.measure.where import POINTS, Where

_LOGITS = ":logits"


class Place(NamedTuple):
    """Where to measure in the forward passes of a validation loop."""

    layers: Mapping[str, Layer]
    """by alias"""
    read: Mapping[str, Read]
    """heads of which the model reads tokens by a rule, by alias of the layer that feeds them"""
    head: Layer | None
    """whose output is the logits; None: no layer feeds it"""
    columns: tuple[int, ...]
    """of the logits, that belong to the classes"""
    logits: str | None = None
    """which output of the model holds the logits; None: by the rule of ``logits_in``"""
    ran: bool = True
    """whether a forward pass has shown all this; False: by the order of registration"""
    routers: RouterNames = ()
    """of which the decisions are kept; none if it is empty, the ones that are found if it is None"""


FindPlace = Callable[[nn.Module, Any, int], Place]
"""Of a model, inputs and how many points these are."""


def find_place(
    where: Where,
    model: nn.Module,
    inputs: Any,
    points: int,
    *,
    columns: tuple[int, ...],
    forward: Forward,
    warn: Callable[[str, str], None],
    pool: Pool,
    routers: RouterNames = (),
) -> Place:
    """Where to measure: as for a probe set by a traced pass of a few points, at the first batch of a series.

    Of a model that is sharded over processes no pass is made, since other processes would have to make it as well.

    Args:
        where: of the series.
        model: left exactly as it was.
        inputs: of the model, of a batch.
        points: of the batch.
        columns: of the logits, that belong to the classes.
        forward: runs the model on a batch.
        warn: takes a warning and a key of its cause.
        pool: as in ``GeometryMonitor``.
        routers: see :class:`Place`.

    Raises:
        InputError: a layer that does not exist.
        LayerError: ``"penultimate"`` is not clear.
    """
    layers: Mapping[str, Layer] = {}
    if not (sharded(model) or any(hasattr(parameter, "full_tensor") for parameter in model.parameters())):
        with torch.inference_mode(False), torch.no_grad():  # the model may write to its inputs
            few = rows_of(inputs, points, torch.linspace(0, points - 1, min(points, POINTS)).long())
        layers = where.find_in(model, lambda: few, columns, forward=forward, warn=warn, pool=pool)
    if not (ran := where.ran):
        layers = where.in_place(model)
    heads = [layer for alias, layer in layers.items() if alias in where.heads]
    head = Layer(heads[0].path, "output", pool=heads[0].pool) if heads and where.has_logits else None
    return Place(layers, where.read if pool == "auto" else {}, head, columns, where.logits, ran, routers)


def rows_of(inputs: Any, points: int, rows: Tensor) -> Any:
    """Some points of the inputs of a batch, as copies; what does not come point by point stays whole.

    Args:
        inputs: tensors ``(B, ...)``, lists of ``B`` items, mappings and tuples of them.
        points: ``B``.
        rows: ``(b,)``.

    >>> rows_of({"x": torch.arange(3), "names": ["a", "b", "c"], "scale": 2.0}, 3, torch.tensor([2]))
    {'x': tensor([2]), 'names': ['c'], 'scale': 2.0}
    >>> rows_of(([torch.ones(1), torch.ones(2)], torch.zeros(2)), 2, torch.tensor([1]))
    ([tensor([1., 1.])], tensor([0.]))
    """
    if isinstance(inputs, Tensor):
        return inputs[rows.to(inputs.device)] if inputs.ndim and len(inputs) == points else inputs.clone()
    if isinstance(inputs, Mapping):
        return {name: rows_of(value, points, rows) for name, value in inputs.items()}
    if type(inputs) not in (tuple, list):
        return inputs
    batched = all(isinstance(value, Tensor) and value.ndim and len(value) == points for value in inputs)
    if isinstance(inputs, list) and len(inputs) == points and not batched:
        return [inputs[row] for row in rows.tolist()]
    return type(inputs)(rows_of(value, points, rows) for value in inputs)


class ValidationBatch:
    """What a forward pass of the validation loop gave.

    Args:
        features: ``(B, N)`` by alias, filled in as the layers run.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.logits: Tensor | None = None
        """``(B, C)``, after the block"""
        self.routing: Mapping[str, LayerRouting] = {}
        """by path of the router"""


@contextmanager
def watched_batch(model: nn.Module, inputs: Any, points: int, place: Place, pool: Pool) -> Iterator[ValidationBatch]:
    """Watch the one forward pass of a batch that runs in the block.

    The logits are those in what the model returns, if it runs once as a whole; else, as in a loop that calls parts of
    it, what the head gives.

    Args:
        model: that runs.
        inputs: of the model, for the mask of its tokens.
        points: of the batch.
        place: where to measure.
        pool: as in ``GeometryMonitor``.

    Raises:
        MeasurementError: on leaving the block: what :func:`geomonitor.features.capture.captured` raises; the model
            reads other tokens than in the traced pass, or which tokens it reads is not known.
    """
    mask, outputs = to_device(mask_of(model, inputs, place.layers.values()), device_of(model)), []
    whole = network_in(plain_modules(model)[""])
    with ExitStack() as stack:
        batch = ValidationBatch(stack.enter_context(captured(model, place.layers, pool=pool, mask=mask)))
        of_heads = {alias: head.layer for alias, head in place.read.items()}
        rows = stack.enter_context(captured(model, of_heads, mask=mask)) if of_heads else {}
        of_head: Mapping[str, Tensor] = {}
        if place.head is not None:
            how: Pool = "auto" if place.head.pool else _logits_alone
            of_head = stack.enter_context(captured(model, {_LOGITS: place.head}, pool=how, mask=mask))
        if place.routers != ():
            seen = to_device(mask_of_routers(model, inputs, place.routers), device_of(model))
            items = points if seen is None else None
            batch.routing = stack.enter_context(captured_routing(model, place.routers, mask=seen, items=items))
        if not isinstance(whole, torch.jit.ScriptModule):
            keep = whole.register_forward_hook(lambda module, args, output: outputs.append(output))
            stack.callback(keep.remove)
        yield batch
    found = logits_in(outputs[0], place.columns, place.logits) if len(outputs) == 1 else None
    if rows:
        require_reading(rows, found, place.read)
    found = of_head.get(_LOGITS) if found is None else found
    if not place.ran and pool == "auto" and found is not None and found.shape[1] == 0:
        raise MeasurementError(
            f"the head {place.head and place.head.path!r} gives logits for each token, and which of them the model "
            "reads is not known, since it could not be run on the inputs of the batch alone. Give forward= a function "
            "of (model, inputs) that runs it, or pool="
        )
    batch.logits = found.detach() if found is not None and found.shape[1] > 1 else None


def _logits_alone(output: Tensor, mask: Tensor | None) -> Tensor:
    """Logits ``(B, C)`` as they are, the mean over places ``(B, C, H, W)``; of tokens ``(B, 0)``."""
    if output.ndim == 3:
        return output.new_zeros(len(output), 0)
    return output if output.ndim == 2 else output.flatten(2).mean(dim=2)
