"""Names of layers: from what a user writes to places in a model, whatever the model is wrapped in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from torch.jit._trace import TopLevelTracedModule
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from geomonitor import _options
from geomonitor.errors import InputError

Side = Literal["input", "output"]
PENULTIMATE = "penultimate"
OUTPUT = "output"
POOLED = "pooled"
"""what a model gives for a whole input: the output of its pooler, or the field ``pooler_output``"""

POOLS_OF_LAYERS = ("mean", "first", "last", "flatten")
"""What may stand at the end of a layer's name: how its tokens become one row."""

# Under this name an adapter keeps the layer that it adapts (peft, and many that follow it).
BASE_LAYER = "base_layer"
# Children under which torch.compile, FSDP, activation checkpointing and Fabric keep the module they wrap.
_WRAPPED_AS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


@dataclass(frozen=True)
class Layer:
    """What to record: the input or the output of the module at a path. Holds names only, never the module."""

    path: str
    side: Side
    automatic: bool = False  # found by the rule for "penultimate", so the forward pass has to confirm it
    pool: str = ""  # how the model itself turns the tokens of this layer into one row, if it does
    part: str = ""  # field of an output object, if not the usual one
    asked_pool: str = ""  # how its tokens become rows, by its name

    def __str__(self) -> str:
        named = f"{self.path}:{self.side}{self.part and '.'}{self.part}"
        return f"{named}:{self.asked_pool}" if self.asked_pool else named


Layers: TypeAlias = "str | Sequence[str] | Mapping[str, str] | Mapping[str, Layer]"


def resolve_layers(model: nn.Module, layers: Layers = PENULTIMATE) -> dict[str, Layer]:
    """Turn what a user writes into layers that exist in the model.

    A name is ``"penultimate"``, ``"output"`` (of the model), ``"pooled"`` (of its pooler), a module path such as
    ``"layer4.1"`` (its output), or a path with a side: ``"fc:input"``, ``"fc:output"``. A path may end with how its
    tokens become rows, which then counts before ``pool``: ``"blocks.3:last"``, ``"blocks.3:input:mean"``. Without a
    forward pass ``"penultimate"`` is the input of the last ``nn.Linear``; a monitor finds what feeds the logits. Paths
    refer to the plain model, without what ``torch.compile``, DDP, FSDP, activation checkpointing, weight averaging and
    Fabric add to them.

    Args:
        model: the model, wrapped or not.
        layers: one name, a list of names, or a mapping from an alias of your choice to a name.

    Returns:
        Alias to ``Layer``. Without an alias of your own it is the path, with ``_input`` added for an input.

    Raises:
        InputError: a path that does not exist (with the nearest ones), a module of TorchScript, or a
            ``"penultimate"`` that is absent or ambiguous: heads next to each other in a ``ModuleList`` or
            ``ModuleDict`` (candidates listed).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> {alias: str(layer) for alias, layer in resolve_layers(model, ["penultimate", "1"]).items()}
        {'penultimate': '2:input', '1': '1:output'}
    """
    return resolve_in(plain_modules(model), layers)


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """List every module that is not a wrapper under the path that it has in the plain model.

    Args:
        model: the model, wrapped or not.

    Returns:
        Path to module, in the order of registration; the model itself is under ``""``.

    Example:
        >>> list(plain_modules(nn.DataParallel(nn.Sequential(nn.Linear(2, 2)))))
        ['', '0']
    """
    _options.instance("model", model, nn.Module, "a torch.nn.Module")
    modules: dict[str, nn.Module] = {}

    def visit(module: nn.Module, path: str) -> None:
        modules[path] = module = _unwrapped(module)
        for key, child in module._modules.items():
            if child is not None:
                visit(child, f"{path}.{key}" if path else key)

    visit(model, "")
    return modules


def _unwrapped(module: nn.Module) -> nn.Module:
    children = dict(module._modules.items())
    inner = next((children[key] for key in _WRAPPED_AS if children.get(key) is not None), None)
    # DDP, DataParallel, AveragedModel, DeepSpeed. A user's own child may also be called "module".
    if set(children) == {"module"} and type(module).__module__.startswith(("torch.", "deepspeed.")):
        inner = children["module"]
    return module if inner is None else _unwrapped(inner)


def layer_aliases(model: nn.Module, layers: Layers) -> list[str]:
    """Names under which layers are measured; where ``"penultimate"`` is need not be known.

    Args:
        model: in which the other layers have to be.
        layers: as in :func:`resolve_layers`.

    Raises:
        InputError: as :func:`resolve_layers`, except for what concerns ``"penultimate"``.

    >>> layer_aliases(nn.Sequential(nn.ReLU()), ["penultimate", "0"])
    ['penultimate', '0']
    """
    return list(resolve_in(plain_modules(model), layers, Layer("", "input", automatic=True)))


def resolve_in(modules: Mapping[str, nn.Module], layers: Layers, penultimate: Layer | None = None) -> dict[str, Layer]:
    """``resolve_layers`` for a model whose modules are already listed by ``plain_modules``.

    Args:
        modules: by path.
        layers: as in :func:`resolve_layers`.
        penultimate: what this name means, if it is known.
    """
    resolved: dict[str, Layer] = {}
    for own_alias, name in checked_layers(layers):
        if penultimate is not None and name == PENULTIMATE and PENULTIMATE not in modules:
            layer = penultimate
        else:
            layer = name if isinstance(name, Layer) else _parsed(modules, name)
        if layer.path not in modules:
            raise InputError(f"the model has no layer {layer.path!r}. {_nearest(layer.path, modules)}")
        _refuse_script(layer, modules[layer.path])
        by_rule = name in (PENULTIMATE, OUTPUT, POOLED) and name not in modules
        alias = own_alias or (str(name) if by_rule else _default_alias(layer))
        if "/" in alias:
            raise InputError(f"the alias {alias!r} has a '/', which is kept for the parts of logged names")
        if alias in resolved:
            raise InputError(f"two layers are called {alias!r}: give aliases, {{'alias': 'path:input'}}")
        resolved[alias] = layer
    if not resolved:
        raise InputError("no layer given: expected a name such as 'penultimate', a list of names or a mapping")
    return resolved


def checked_layers(layers: Any) -> list[tuple[str, Any]]:
    """Alias, empty if none is given, and layer, of each layer that is requested.

    Raises:
        InputError: no name, list of names or mapping from aliases to names.
    """
    pairs = list(layers.items()) if isinstance(layers, Mapping) else None
    if pairs is None:
        several = isinstance(layers, (list, tuple)) and not isinstance(layers, Layer)
        pairs = [("", name) for name in (layers if several else [layers])]
    for alias, name in pairs:
        if not isinstance(alias, str) or not isinstance(name, (str, Layer)):
            raise InputError(
                "layers must be a name, a list of names or a mapping of aliases to names, such as 'penultimate', "
                f"['encoder:output'] or {{'head': 'fc:input'}}; got {name!r}"
            )
    return pairs


def _refuse_script(layer: Layer, module: nn.Module) -> None:
    # Of traced code the outermost module is called from Python, so its hooks run.
    if isinstance(module, torch.jit.ScriptModule) and not isinstance(module, TopLevelTracedModule):
        raise InputError(
            f"layer {layer.path!r} is TorchScript code, which runs no hooks: name a layer outside it that takes its "
            "output or gives its input, or measure the model before it goes through torch.jit"
        )


def _parsed(modules: Mapping[str, nn.Module], name: str) -> Layer:
    if name == PENULTIMATE and PENULTIMATE not in modules:
        return Layer(_head(modules), "input", automatic=True)
    if name == OUTPUT and OUTPUT not in modules:
        return Layer("", "output")
    if name == POOLED and POOLED not in modules:
        poolers = [path for path in modules if path.rpartition(".")[2] == "pooler"]
        return Layer(poolers[0], "output") if len(poolers) == 1 else Layer("", "output", part="pooler_output")
    path, *ends = name.split(":")
    side = ends.pop(0) if ends and ends[0] in get_args(Side) else "output"
    pool = ends.pop(0) if ends and ends[0] in POOLS_OF_LAYERS else ""
    if ends:
        raise InputError(
            f"expected 'path', 'path:input' or 'path:output', and then perhaps how tokens become rows "
            f"({', '.join(POOLS_OF_LAYERS)}), such as 'path:last'; found {name!r}"
        )
    return Layer(path, "input" if side == "input" else "output", asked_pool=pool)


def _default_alias(layer: Layer) -> str:
    if layer.automatic:
        return PENULTIMATE
    named = (layer.path or "model") + ("_input" if layer.side == "input" else "")
    return f"{named}_{layer.asked_pool}" if layer.asked_pool else named


def linear_paths(modules: Mapping[str, nn.Module]) -> list[str]:
    """First path of every ``nn.Linear`` that can run: attention's ``out_proj`` only lends its weights."""
    paths: dict[nn.Module, str] = {}
    for path, module in modules.items():
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear):
            paths.setdefault(module, path)  # of several names the one registered first
    return list(paths.values())


def _head(modules: Mapping[str, nn.Module]) -> str:
    """The path of the last linear layer, unless its container holds several heads, or the model names its head."""
    named = getattr(modules[""], "head_path", None)  # a model of another library, whose layers are no nn.Linear
    if isinstance(named, str) and named in modules:
        return named
    linears = linear_paths(modules)
    if not linears:
        raise InputError(
            "the model has no nn.Linear, so 'penultimate' means nothing here: name a layer, such as "
            f"layers='path' or 'path:input'. The model has {listed(path for path in modules if path)}"
        )
    path = linears[-1]
    while "." in path:
        path = path.rpartition(".")[0]
        if isinstance(modules[path], (nn.ModuleList, nn.ModuleDict)):
            _refuse_parallel_heads(path, modules, linears)
    return around_adapters(linears[-1], modules)


def around_adapters(path: str, modules: Mapping[str, nn.Module]) -> str:
    """A base layer with its adapters (LoRA's A and B) is one layer."""
    above = path
    while "." in above:
        above = above.rpartition(".")[0]
        if BASE_LAYER in modules[above]._modules:
            return above
    return path


def _refuse_parallel_heads(container: str, modules: Mapping[str, nn.Module], linears: list[str]) -> None:
    """Refuse heads side by side, not blocks in a row: a block takes in what the block before it gives out."""
    children: dict[str, list[str]] = {}
    start = f"{container}."
    for path in linears:
        if path.startswith(start):
            children.setdefault(path[len(start) :].partition(".")[0], []).append(path)
    if len(children) < 2:
        return
    before, last = list(children.values())[-2:]
    if modules[before[-1]].out_features != modules[last[0]].in_features:
        candidates = [f"{paths[-1]}:input" for paths in children.values()]
        raise InputError(
            f"'penultimate' is ambiguous: {container!r} holds several heads. Choose, for example "
            f"layers={candidates[0]!r}. Candidates: {listed(candidates)}"
        )


def _nearest(path: str, modules: Mapping[str, nn.Module]) -> str:
    near = difflib.get_close_matches(path, [known for known in modules if known], n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}It has {listed(known for known in modules if known)}"


def listed(names: Iterable[str], most: int = 30) -> str:
    """Names for an error message, at most ``most``, so that the message stays readable."""
    every = list(names)
    more = f" and {len(every) - most} more (see model.named_modules())" if len(every) > most else ""
    return (", ".join(every[:most]) or "no layers") + more
