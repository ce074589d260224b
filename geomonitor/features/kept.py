"""What a model holds besides its parameters, kept before a forward pass so that it can be put back afterwards."""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
_CONTAINERS = (list, set, deque, *_MAPPINGS)
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes)
_ABSENT = object()

# What nn.Module keeps for itself: buffers, parameters, children, hooks. The mode has its own place in ``undisturbed``.
_BOOKKEEPING = tuple(vars(nn.Module()))
_REGISTERS = tuple(key for key, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
_OWN_NAMES = ("_buffers", "_parameters", "_modules")

# Modules of these parts of torch are layers. All others of torch wrap a model and manage themselves.
_LAYERS = ("torch.nn.modules.", "torch.nn.utils.", "torch.ao.")
# Classes that shard a model over processes: they exchange parameters and hooks during a forward pass by design.
_SHARDING = ("torch.distributed.", "deepspeed.")
# Objects of classes that derive from these are shared with the training loop, or have threads of their own.
_SHARED = frozenset(
    {"torch", "lightning", "pytorch_lightning", "lightning_fabric"}
    | {"threading", "multiprocessing", "concurrent", "asyncio", "logging", "socket", "queue"}
)
_NAMESPACES = (SimpleNamespace, Namespace)
# Steps from an attribute of a module to a value inside: list or object, object in a list, list of that object.
_DEPTH = 3
# Longer containers are kept with their items, but the insides of the items are not: such a list holds data.
_MOST_ITEMS = 1000


class PutBack(NamedTuple):
    """Names of what had changed."""

    restored: list[str]
    failed: list[str]
    error: Exception | None
    """the first one"""


class Kept:
    """The state of all modules of a model: what they register, plain attributes, and the insides of these.

    Args:
        model: a module, and with it those that it holds in plain attributes.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        self._sharded = sharded(model)
        self.parameters: set[str] = set()
        """names of those that are kept"""
        self._entries: list[tuple[str, Callable[[], list[str] | bool]]] = []
        self._seen: dict[int, Any] = {id(module): module for module in modules.values()}
        # Parameters are watched, not copied, also those that a layer lists in an attribute.
        self._seen |= {id(parameter): parameter for parameter in model.parameters()}
        for name, module in modules.items():
            self._keep_module(f"{name}." if name else "", module)

    def keep_parameter(self, name: str, parameter: Tensor) -> None:
        """Copy a parameter that is about to be written to."""
        self.parameters.add(name)
        self._entries.append((name, _kept_tensor(parameter)))

    def put_back(self) -> PutBack:
        """Undo what changed since. A failure does not stop the others."""
        restored, failed, first = [], [], None
        for name, put_back in self._entries:
            try:
                changed = put_back()
            except Exception as error:  # noqa: BLE001 - all others have to be put back first
                failed.append(name)
                first = first or error
            else:
                restored += changed if isinstance(changed, list) else [name] * changed
        return PutBack(list(dict.fromkeys(restored)), failed, first)

    def _keep_module(self, prefix: str, module: nn.Module) -> None:
        kind = _plain_class(module).__module__
        layer, wrapper = kind.startswith(_LAYERS), kind.startswith(("torch.", *_SHARDING))
        if not self._sharded and not isinstance(module, torch.jit.ScriptModule):
            registers = [(key, vars(module)[key]) for key in _REGISTERS if key in vars(module)]
            copies = [(key, register, _copied(register)) for key, register in registers]
            self._entries.append((f"{prefix}registers", partial(_put_back_registers, prefix, copies, not layer)))
        for key, buffer in list(module._buffers.items()):
            self._keep(f"{prefix}{key}", buffer)
        # Lookups with a maximal norm write to their weight by design.
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            self._entries.append((f"{prefix}weight", _kept_tensor(module.weight)))
        if wrapper and (self._sharded or not layer):
            return
        before = {key: value for key, value in vars(module).items() if key not in _BOOKKEEPING}
        self._entries.append((f"{prefix}attributes", partial(_put_back_attributes, prefix, module, before, not layer)))
        if not layer:  # torch's layers keep tensors in attributes only to replace them at the next forward
            for key, value in before.items():
                self._keep(f"{prefix}{key}", value)

    def _keep(self, name: str, value: Any, depth: int = 0) -> None:
        """Keep the inside of a value."""
        if isinstance(value, _CONSTANTS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):  # hidden from the model in a list or an object
            for inner, module in value.named_modules():
                self._seen[id(module)] = module
                self._keep_module(f"{name}.{inner}." if inner else f"{name}.", module)
        elif isinstance(value, Tensor):
            if _has_content(value):
                self._entries.append((name, _kept_tensor(value)))
        elif isinstance(value, np.ndarray):
            self._entries.append((name, partial(_put_back_array, value, value.copy())))
        elif isinstance(value, (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)):
            self._entries.append((name, _kept_stream(value)))
        elif type(value) in _CONTAINERS or isinstance(value, tuple):
            if not isinstance(value, tuple):
                self._entries.append((name, partial(_put_back_container, value, _copied(value))))
            if depth < _DEPTH and len(value) <= _MOST_ITEMS:
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                for key, item in list(pairs):
                    self._keep(f"{name}[{key!r}]", item, depth + 1)
        elif depth < _DEPTH and _is_plain_object(value):
            before = dict(vars(value))
            self._entries.append((name, partial(_put_back_attributes, f"{name}.", value, before, True)))
            for key, item in before.items():
                self._keep(f"{name}.{key}", item, depth + 1)


def sharded(model: nn.Module) -> bool:
    """Whether a class in the model spreads it over processes (FSDP, DeepSpeed)."""
    return any(
        base.__module__.startswith(_SHARDING) for kind in {type(m) for m in model.modules()} for base in kind.__mro__
    )


def _plain_class(module: nn.Module) -> type:
    """The class of a module, without the one that a parametrisation puts in its place."""
    kind = type(module)
    return kind.__bases__[0] if kind.__module__ == "torch.nn.utils.parametrize" and kind.__bases__ else kind


def _is_plain_object(value: Any) -> bool:
    if type(value) in _NAMESPACES:
        return True
    own, *others = (base.__module__.partition(".")[0] for base in type(value).__mro__)
    return (
        hasattr(value, "__dict__") and own not in sys.stdlib_module_names and not _SHARED.intersection({own, *others})
    )


def _copied(container: Any) -> Any:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _put_back_container(container: Any, before: list[Any]) -> bool:
    now = _copied(container)
    if not now and not before:
        return False
    if isinstance(container, set):
        if len(now) == len(before) and container == set(before):
            return False
    elif isinstance(container, dict):
        if len(now) == len(before) and all(
            k is key and v is value for (k, v), (key, value) in zip(now, before, strict=True)
        ):
            return False
    elif len(now) == len(before) and all(one is other for one, other in zip(now, before, strict=True)):
        return False
    container.clear()
    if isinstance(container, dict):
        for key, value in before:
            container[key] = value
    elif isinstance(container, set):
        container.update(before)
    else:
        container.extend(before)
    return True


def _put_back_registers(prefix: str, registers: list[tuple[str, Any, Any]], report: bool) -> list[str]:
    changed = []
    for key, register, before in registers:
        if not register and not before:  # most are empty
            continue
        now = dict(register) if key in _OWN_NAMES else {}
        if _put_back_container(register, before) and (report or key in _OWN_NAMES):
            known = dict(before) if key in _OWN_NAMES else {}
            names = [name for name in {**known, **now} if now.get(name, _ABSENT) is not known.get(name, _ABSENT)]
            changed += [f"{prefix}{name}" for name in names or ([key] if key not in _OWN_NAMES else [])]
    return changed


def _put_back_attributes(prefix: str, owner: Any, before: dict[str, Any], report: bool) -> list[str]:
    now, skip = vars(owner), _BOOKKEEPING if isinstance(owner, nn.Module) else ()
    added = [key for key in now if key not in before and key not in skip]
    rebound = [key for key, value in before.items() if now.get(key, _ABSENT) is not value]
    for key in added:
        del now[key]
    for key in rebound:
        now[key] = before[key]
    return [f"{prefix}{key}" for key in [*added, *rebound]] if report else []


def _put_back_array(array: Any, before: Any) -> bool:
    if array.shape == before.shape and array.tobytes() == before.tobytes():
        return False
    if array.shape != before.shape:
        array.resize(before.shape, refcheck=False)
    array[...] = before
    return True


def _kept_stream(stream: Any) -> Callable[[], bool]:
    """The state of a random generator that a module owns."""
    if isinstance(stream, torch.Generator):
        before = stream.get_state()

        def put_back_torch() -> bool:
            changed = not torch.equal(stream.get_state(), before)
            stream.set_state(before)
            return changed

        return put_back_torch
    if isinstance(stream, random.Random):
        state: Any = stream.getstate()

        def put_back_python() -> bool:
            changed = bool(stream.getstate() != state)
            stream.setstate(state)
            return changed

        return put_back_python
    bits = stream.bit_generator if isinstance(stream, np.random.Generator) else stream._bit_generator
    saved = bits.state

    def put_back() -> bool:
        changed = repr(bits.state) != repr(saved)
        bits.state = saved
        return changed

    return put_back


def _has_content(tensor: Tensor) -> bool:
    if tensor.is_meta or (tensor.layout == torch.strided and not tensor.is_nested and not tensor.numel()):
        return not tensor.is_meta
    return tensor.layout != torch.strided or tensor.is_nested or tensor.untyped_storage().nbytes() > 0


def _kept_tensor(value: Tensor) -> Callable[[], bool]:
    """Content, shape and storage of a tensor that is written to in place."""
    held, copy = value.detach(), value.detach().clone()
    plain = type(value) in (Tensor, nn.Parameter, nn.Buffer) and value.layout == torch.strided
    bytes_before = held.untyped_storage().nbytes() if plain else 0

    def put_back() -> bool:
        moved = plain and (value.data_ptr() != held.data_ptr() or value.shape != copy.shape)
        moved = moved or value.dtype != copy.dtype
        # Content, not the version counter: batch norm writes its running statistics without counting.
        if not moved and _same_content(value, copy):
            return False
        # A tensor made in inference mode accepts writes only there.
        with torch.inference_mode(value.is_inference()), torch.no_grad():
            if moved:  # ``resize_`` and ``.data =`` change the tensor itself: the old view of its storage comes back
                value.data = held
            value.copy_(copy)
            if plain and held.untyped_storage().nbytes() != bytes_before:
                held.untyped_storage().resize_(bytes_before)
        return True

    return put_back


def _same_content(value: Tensor, before: Tensor) -> bool:
    if value.layout != torch.strided:
        value, before = value.to_dense(), before.to_dense()
    if torch.equal(value, before):
        return True
    # NaN is not equal to itself; only a tensor that holds one pays for the second look.
    return value.shape == before.shape and bool(((value == before) | (value.isnan() & before.isnan())).all().item())
