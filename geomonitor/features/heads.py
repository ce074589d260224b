"""Which layer "penultimate" is: what feeds the layer whose output is the logits, found in one traced forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from geomonitor.errors import InputError
from geomonitor.features.layers import Layer, around_adapters, listed
from geomonitor.features.outputs import outputs_of
from geomonitor.features.pooling import is_length_last
from geomonitor.features.projector import before_projector, follows_layers, is_projector
from geomonitor.features.reading import RULES, Traced, places_read_by, reading_of
from geomonitor.features.trace import Call, Operation, Trace, common_path, tensors_in


class LayerError(InputError):
    """No single layer is the one meant: the message lists candidates."""


class Located(NamedTuple):
    """What "penultimate" is in a model."""

    layer: Layer
    logits: str | None
    """which of the model's outputs holds the logits of the classes, by the names of ``outputs_of``; None: none does"""
    why: str
    """in words"""
    candidates: tuple[str, ...] = ()
    """other layers, if the rule had to choose"""


class _Head(NamedTuple):
    path: str
    call: Call
    projects: bool
    """whether it ends with a product with weights, and not with a recurrence or attention"""
    bent: bool
    """whether an activation or a normalisation lies between it and what it was found for"""
    spread: bool = False
    """whether tensors of more dimensions than what it was found for lie between, as in sums of products with weights"""

    @property
    def clean(self) -> bool:
        """Whether nothing but affine maps, pooling and the like lies between it and what it was found for."""
        return self.projects and not self.bent


def locate(
    traced: Traced,
    modules: Mapping[str, nn.Module],
    labels: Sequence[int],
    *,
    per_token: bool = False,
    pooled: bool = False,
) -> Located | None:
    """What "penultimate" is, from one traced forward pass.

    Args:
        traced: the pass.
        modules: of the model by path.
        labels: of the probe's classes; empty if the points have none.
        per_token: points are tokens, so logits are ``(B, L, classes)``.
        pooled: the user gives the rule by which tokens become rows, so that of the model need not be known.

    Returns:
        None if the pass does not show it (a tensor that no recorded operation made).

    Raises:
        LayerError: several heads or towers, or a head that is no module.
    """
    trace, outputs = traced.trace, outputs_of(traced.output)
    width = max(labels, default=-1) + 1 if min(labels, default=-1) >= 0 else 0
    rank = 3 if per_token else 2
    flat = {name: tensor for name, tensor in outputs.items() if tensor.ndim == rank}
    exact = {name: tensor for name, tensor in flat.items() if width > 1 and tensor.shape[-1] == width}
    chosen = exact or {name: tensor for name, tensor in flat.items() if tensor.shape[-1] > width} or flat or outputs
    if not chosen:
        return None
    if "logits" not in outputs and len(chosen) > 1 and (exact or flat):
        _refuse_several(trace, modules, chosen)
    name, tensor = next(iter(chosen.items()))
    head = _head(trace, modules, tensor, strict=bool(exact))
    if head is None and exact:
        return None
    representation = Layer("", "output")
    others = tuple(f"{path}:output" for path in _candidates(modules))
    named = name == "logits" and head is not None and head.projects  # Gemma 2 bounds its logits by a tanh
    if head is None or not (exact or head.clean or named):
        return Located(representation, None, f"the output, of {_shape(tensor)}: no layer gives it as logits", others)
    if not exact and is_projector(head.path, modules, tensor, width) and follows_layers(trace, modules, head.path):
        path = before_projector(trace, modules, head.path)
        unlike = f"is no logits of {width} classes" if width else "has no columns for classes of the probe set"
        why = f"the representation before the projector: an output of {_shape(tensor)} {unlike}"
        return Located(Layer(path, "input"), None, why, (":output", f"{head.path}:input"))
    _refuse_several_inputs(trace, modules, head)
    gives, pool, taken = tensors_in(head.call.gives)[0], "", tensors_in(head.call.takes)[0]
    sums = exact and head.spread and gives.shape == tensor.shape
    if sums and reading_of(traced, modules, head.path, name) is None:
        _refuse_computed(trace, modules, tensor, f"after {head.path!r} without a product with weights", [head.path])
    if tensor.ndim == 2 and gives.ndim > 2 and not pooled:
        reading = reading_of(traced, modules, head.path, name)
        tokens = gives.ndim == 3 and not is_length_last(modules[head.path])
        if reading is None and (tokens or (exact and head.clean)):
            _refuse_reading(head, gives, tokens=tokens)
        pool = reading.rule if reading is not None else ""
        if head.clean and not tokens:
            pool = _pool_of_places(head.path, modules[head.path], taken, strict=bool(exact)) or pool
    layer = Layer(head.path, "input", pool=pool)
    unnamed = isinstance(traced.output, Mapping) and "logits" not in outputs
    if tensor.ndim == rank and 1 < width <= tensor.shape[-1] and (exact or not unnamed):
        return Located(layer, name, f"what feeds the logits, {_shape(tensor)}")
    why = f"what feeds the output, {_shape(tensor)}, which is no logits (points, classes) of the probe set"
    return Located(layer, None, why, (":output", *others))


def _shape(tensor: Tensor) -> str:
    return f"shape ({', '.join(['B', *map(str, tensor.shape[1:])])})"


def _head(trace: Trace, modules: Mapping[str, nn.Module], tensor: Tensor, *, strict: bool) -> _Head | None:
    """The module from which a tensor comes; None if there is none, which is an error if ``strict``."""
    mixing, after = trace.sources(tensor)
    if not mixing:
        return None
    path = common_path([operation.within for operation in mixing])
    path, module = around_adapters(path, modules), modules.get(path)
    call = trace.call_of(path)
    if isinstance(module, torch.jit.ScriptModule) or call is None:
        return None
    alone = len({operation.within for operation in mixing}) == 1
    leaf = not any(True for _ in _own_children(module)) if module is not None else True
    affine = not any(operation.bends for operation in trace.operations if path in operation.within)
    fits = any(tensor.shape[-1] in (given.shape[-1], *given.shape[1:2]) for given in tensors_in(call.gives)[:1])
    if strict and path and (added := _added(trace, after)):
        raise LayerError(
            f"'penultimate' is not clear: the logits, {_shape(tensor)}, add {added} to what {path!r} gives, so that no "
            "single layer gives them. Name what to measure: "
            f"{_suggestion(trace, modules, [path])}"
        )
    if not fits or not (leaf or (affine and path)):
        if not strict:
            return None
        makers = [made.path for made in trace.calls if any(each is tensor for each in tensors_in(made.gives))]
        owners = [*makers, *(operation.within[-1] for operation in mixing)]
        within = f"in the forward of {type(modules[path]).__name__}" if alone else "from several layers"
        if alone and leaf:  # a layer that gives something else, such as features that are compared with prototypes
            within = f"after {path!r} without a product with weights"
        _refuse_computed(trace, modules, tensor, within, owners)
    projects = all(operation.projects for operation in mixing)
    spread = any(operation.rank > tensor.ndim for operation in after)
    return _Head(path, call, projects, any(operation.bends for operation in after), spread)


def _refuse_computed(
    trace: Trace, modules: Mapping[str, nn.Module], tensor: Tensor, within: str, owners: Sequence[str]
) -> NoReturn:
    raise LayerError(
        f"'penultimate' is not clear: the logits, {_shape(tensor)}, are computed {within}, and no single layer gives "
        "them (a head in functional form, or several heads). Make the head a module, or name what to measure: "
        f"{_suggestion(trace, modules, owners)}"
    )


def _added(trace: Trace, after: Sequence[Operation]) -> str:
    """What reaches the logits past the head, as in a skip connection: numbers of the input, no mask or ids; words."""
    whole = trace.call_of("")
    given = {id(tensor) for tensor in tensors_in(whole.takes)[:1] if tensor.is_floating_point()} if whole else set()
    if any("embedding" in operation.name for operation in after):
        return "rows of an embedding"
    return "values of the model's input" if any(given.intersection(operation.takes) for operation in after) else ""


def _own_children(module: nn.Module) -> list[nn.Module]:
    """Children that compute; a parametrisation of a weight is no layer."""
    return [child for name, child in module.named_children() if name != "parametrizations"]


def _refuse_several(trace: Trace, modules: Mapping[str, nn.Module], outputs: Mapping[str, Tensor]) -> None:
    heads = []
    for tensor in outputs.values():
        mixing, _ = trace.sources(tensor)
        heads += [around_adapters(common_path([operation.within for operation in mixing]), modules)] if mixing else []
    shapes = ", ".join(f"{name}: {_shape(tensor)}" for name, tensor in outputs.items())
    raise LayerError(
        f"'penultimate' is not clear: the model gives several outputs that may be meant ({shapes}). Name what to "
        "measure, or give forward= a function of (model, inputs) that returns the one that is meant. "
        f"{_suggestion(trace, modules, heads)}"
    )


def _refuse_several_inputs(trace: Trace, modules: Mapping[str, nn.Module], head: _Head) -> None:
    """Of a layer such as ``nn.Bilinear`` no single input is the representation."""
    given = [tensor for tensor in tensors_in(head.call.takes) if tensor.is_floating_point() and tensor.ndim > 1]
    if len(given) < 2 or _own_children(modules[head.path]):
        return
    owners = [common_path([operation.within for operation in mixing]) for t in given if (mixing := trace.sources(t)[0])]
    raise LayerError(
        f"'penultimate' is not clear: {head.path!r}, which gives the logits, takes {len(given)} inputs. Name what to "
        f"measure: {_suggestion(trace, modules, owners)}"
    )


def _suggestion(trace: Trace, modules: Mapping[str, nn.Module], owners: Sequence[str]) -> str:
    named = [path for path in dict.fromkeys(owners) if path]
    found = [f"{path}:input" for path in named] + [f"{path}:output" for path in named]
    found = found or [f"{path}:output" for path in _candidates(modules) if trace.call_of(path) is not None]
    return f"Candidates: {listed(found)}" if found else "Candidates: :output"


def _candidates(modules: Mapping[str, nn.Module]) -> list[str]:
    """Modules one level down, which are usually the parts that people name."""
    return [path for path in modules if path and "." not in path][:8]


def _refuse_reading(head: _Head, gives: Tensor, *, tokens: bool) -> None:
    rules = f"none of {', '.join(RULES)} over the tokens of the mask" if tokens else "not the mean over places"
    agree = (
        " Or let the attention_mask of the inputs cover what the model reads: no tokens with the id of "
        "config.pad_token_id, and those that a prompt adds."
    )
    raise LayerError(
        f"the head {head.path!r} gives {_shape(gives)}, and the model reads logits from it by a rule that is {rules}. "
        f"Give pool= a function of (tensor, mask) that returns one row (B, N) for each point: the one that the model "
        f"reads, of the input of {head.path!r}.{agree if tokens else ''}"
    )


def _pool_of_places(path: str, module: nn.Module, taken: Tensor, *, strict: bool) -> str:
    """How the places become rows that a head takes; ``""``: by their mean, as by default."""
    found = places_read_by(module, taken)
    if found is None and strict:
        raise LayerError(
            f"'penultimate' is not clear: the head {path!r} looks at several places at a time, so that the logits are "
            f"not given by one row of its input, {_shape(taken)}. Give pool='mean' for the mean over its places all "
            f"the same, pool='flatten' for all of them, or name what to measure: Candidates: {path}:output"
        )
    return "flatten" if found == "flatten" else ""


def place_of(
    trace: Trace, modules: Mapping[str, nn.Module], layer: Layer, output: Any, rank: int = 2, *, straight: bool = False
) -> str | None:
    """Which output comes out of the head that a layer feeds, by the names of ``outputs_of``; None if none does.

    Args:
        trace: of a forward pass.
        modules: of the model by path.
        layer: whose side is "input", or it feeds no head.
        output: what the model returned.
        rank: dimensions of logits: three if points are tokens.
        straight: the head is a product with weights, and no activation or normalisation comes after it.
    """
    for name, tensor in outputs_of(output).items() if layer.side == "input" else ():
        head = _head(trace, modules, tensor, strict=False)
        if head is not None and head.path == layer.path and tensor.ndim == rank and (head.clean or not straight):
            return name
    return None


def describe(located: Located, alias: str) -> str:
    """One line for the log.

    >>> describe(Located(Layer("fc", "input"), "", "what feeds the logits, shape (B, 4)"), "penultimate")
    "layer 'penultimate' is fc:input: what feeds the logits, shape (B, 4)"
    """
    pooled = f", pooled by {located.layer.pool!r}" if located.layer.pool else ""
    others = f". Others: layers={' or '.join(map(repr, located.candidates[:4]))}" if located.candidates else ""
    return f"layer {alias!r} is {located.layer}{pooled}: {located.why}{others}"


def require_logits(
    traced: Traced, modules: Mapping[str, nn.Module], last: Layer, columns: Sequence[int], *, rank: int
) -> None:
    """Refuse a layer that was found by the order of registration, if the model gives logits and they are not its.

    Args:
        traced: a forward pass.
        modules: of the model by path.
        last: the layer.
        columns: of the logits, that belong to the classes.
        rank: dimensions of logits: three if points are tokens.

    Raises:
        LayerError: the logits are of another layer, or of none.
    """
    width = max(columns, default=-1) + 1
    outputs = outputs_of(traced.output).items()
    logits = [name for name, tensor in outputs if tensor.ndim == rank and tensor.shape[-1] == width > 1]
    if logits and not any(reading_of(traced, modules, last.path, name) for name in logits):
        raise LayerError(
            "'penultimate' is not clear: the forward pass does not show which layer gives the logits, and the last "
            f"nn.Linear, {last.path!r}, does not. Name what to measure, such as layers='path:input'. The model has "
            f"{listed(path for path in modules if path)}"
        )
