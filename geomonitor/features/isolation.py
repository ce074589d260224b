"""Running a model without leaving a trace: modes, random numbers, buffers and gradients come back."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from geomonitor._random import preserved_rng
from geomonitor.errors import GeomonitorWarning, MeasurementError

_BOOKKEEPING = frozenset(vars(nn.Module()))
_CONTAINERS = (list, dict, set, deque)
_ABSENT = object()


@contextmanager
def undisturbed(model: nn.Module, tell: Callable[[str, str], None] | None = None) -> Iterator[None]:
    """Put a model in evaluation mode, without gradients, and leave it exactly as it was.

    Restored on every way out, exceptions and ``KeyboardInterrupt`` included: the ``training`` flag of each
    module (set directly: an overridden ``train()`` or ``eval()`` may merge weights or unfreeze layers); the
    random streams of Python, NumPy, torch and every device in use; grad, inference and autocast modes;
    ``requires_grad`` and ``grad`` of each parameter; buffers; and whatever ``forward`` rebinds, adds or grows
    among the attributes of the user's own modules. Inside, the random streams start from a fixed seed, so
    that a probe with random transforms stays the same probe.

    Parameters are watched, not copied (that would double the memory): a ``forward`` that writes to one is
    reported, because it cannot be undone. The exception is ``nn.Embedding(max_norm=...)``, which writes to
    its weight by design and is restored. Out of reach: the ``torch.Generator`` or ``numpy.random.Generator``
    objects that a dataset or a module owns, the inside of other objects, and writes through
    ``parameter.data``.

    Args:
        model: any module; one that is wrapped (``torch.compile``, DDP) may be given wrapped.
        tell: takes a message of what ``forward`` changed, and the names again as the cause; None: a warning is given.

    Yields:
        Nothing: call the model inside the block.

    Raises:
        MeasurementError: the model has lazy parameters that no batch has shaped yet.

    Warns:
        GeomonitorWarning: when ``forward`` changed something, naming what was put back and what could not be.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
        >>> with undisturbed(model):
        ...     model.training, model(torch.ones(1, 2)).requires_grad
        (False, False)
        >>> model.training
        True
    """
    _refuse_lazy(model)
    reports: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(preserved_rng())
        for module in list(model.modules()):
            stack.callback(setattr, module, "training", module.training)
        stack.callback(_put_back_state, _tables(model), reports)
        stack.callback(_put_back_parameters, _parameter_states(model), reports)
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        # Inference mode first: leaving it turns gradients on. A tensor made in it could not be used in place.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        # Weights cast without gradients must not be what a training step in the same autocast block finds in
        # the cache: it would get no gradients (pytorch/pytorch issue 158232).
        torch.set_autocast_cache_enabled(False)
        for module in model.modules():
            module.training = False
        yield
    if reports:
        message = (
            f"in evaluation mode the forward pass of {type(model).__name__} still changes its own state: "
            f"{'; '.join(reports)}. To measure without this, let forward write only `if self.training`."
        )
        if tell is None:
            warnings.warn(message, GeomonitorWarning, stacklevel=3)
        else:
            tell(message, "; ".join(reports))


def _refuse_lazy(model: nn.Module) -> None:
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise MeasurementError(
            f"the model has parameters without a shape: {_listed(lazy)}. A probe pass would create them; "
            "run one training batch first."
        )


class _Table:
    """One dictionary of a module (its buffers, or its plain attributes) and what was in it."""

    def __init__(self, prefix: str, table: dict[str, Any]) -> None:
        self.prefix = prefix
        self.table = table
        self.before = {key: value for key, value in table.items() if key not in _BOOKKEEPING}
        self.copies = {
            key: value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)
            for key, value in self.before.items()
            if isinstance(value, Tensor) or type(value) in _CONTAINERS
        }

    def put_back(self) -> list[str]:
        """Undo what changed since; returns the names of what had changed."""
        now = dict(self.table.items())
        changed = [key for key in now if key not in self.before and key not in _BOOKKEEPING]
        for key in changed:
            del self.table[key]
        for key, value in self.before.items():
            rebound = now.get(key, _ABSENT) is not value
            if rebound:
                self.table[key] = value
            if _refilled(value, self.copies.get(key)) or rebound:
                changed.append(key)
        return [f"{self.prefix}{key}" for key in changed]


def _tables(model: nn.Module) -> list[_Table]:
    tables = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        tables.append(_Table(prefix, module._buffers))
        # torch's own layers and wrappers keep no results in attributes; what they keep is theirs to manage.
        if not type(module).__module__.startswith("torch."):
            tables.append(_Table(prefix, vars(module)))
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            tables.append(_Table(prefix, module._parameters))
    return tables


def _put_back_state(tables: list[_Table], reports: list[str]) -> None:
    restored = [name for table in tables for name in table.put_back()]
    if restored:
        reports.append(f"put back {_listed(restored)}")


def _refilled(value: Any, before: Any) -> bool:
    """Whether the content of a tensor or container had changed; if so it has its old content again."""
    if isinstance(value, Tensor):
        # Content, not the version counter: batch norm writes its running statistics without counting.
        if _same_content(value, before):
            return False
        # A tensor made in inference mode accepts writes only there.
        with torch.inference_mode(value.is_inference()), torch.no_grad():
            value.copy_(before)
        return True
    if before is None or _same_items(value, before):
        return False
    value.clear()
    (value.update if isinstance(value, (dict, set)) else value.extend)(before)
    return True


def _same_content(value: Tensor, before: Tensor) -> bool:
    if value.layout != torch.strided:
        value, before = value.to_dense(), before.to_dense()
    if torch.equal(value, before):
        return True
    # NaN is not equal to itself; only a tensor that holds one pays for the second look.
    return value.shape == before.shape and bool(((value == before) | (value.isnan() & before.isnan())).all().item())


def _same_items(value: Any, before: Any) -> bool:
    if len(value) != len(before):
        return False
    if isinstance(value, set):
        return bool(value == before)
    if isinstance(value, dict):
        value, before = chain(value, value.values()), chain(before, before.values())
    return all(one is other for one, other in zip(value, before, strict=True))


_ParameterState = tuple[str, nn.Parameter, int, bool, "Tensor | None", int]


def _parameter_states(model: nn.Module) -> list[_ParameterState]:
    return [
        (
            name,
            parameter,
            _version(parameter),
            parameter.requires_grad,
            parameter.grad,
            _version(parameter.grad),
        )
        for name, parameter in model.named_parameters()
    ]


def _put_back_parameters(states: list[_ParameterState], reports: list[str]) -> None:
    """Restore flags and gradients; report writes to the values themselves, of which there is no copy."""
    restored, written = [], []
    for name, parameter, version, requires_grad, grad, grad_version in states:
        if parameter.requires_grad != requires_grad or parameter.grad is not grad:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
            restored.append(f"the gradient settings of {name}")
        if _version(parameter) != version or _version(grad) != grad_version:
            written.append(name)
    if restored:
        reports.append(f"put back {_listed(restored)}")
    if written:
        reports.append(f"wrote to parameters, which cannot be undone: {_listed(written)}")


def _version(tensor: Tensor | None) -> int:
    # Tensors made in inference mode keep no count.
    return -1 if tensor is None or tensor.is_inference() else tensor._version


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
