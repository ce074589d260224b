"""Running a model without leaving a trace: modes, random numbers, buffers and gradients come back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from geomonitor._random import preserved_rng
from geomonitor.errors import GeomonitorWarning, MeasurementError
from geomonitor.features.kept import Kept, PutBack
from geomonitor.features.quiet import logging_off
from geomonitor.features.watched import (
    ParameterState,
    Written,
    before_writes,
    parameter_states,
    put_back_parameters,
    written_parameters,
)


@contextmanager
def undisturbed(
    model: nn.Module, warn: Callable[[str, str], None] | None = None, written: Written | None = None
) -> Iterator[None]:
    """Put a model in evaluation mode, without gradients, and leave it exactly as it was.

    Restored on every way out, exceptions and ``KeyboardInterrupt`` included: the ``training`` flag of each
    module (set directly: an overridden ``train()`` or ``eval()`` may merge weights or unfreeze layers); the
    random streams of Python, NumPy, torch and every device in use; grad, inference and autocast modes;
    ``requires_grad`` and ``grad`` of each parameter; buffers, whatever their shape has become; children and
    hooks that were added or removed; and whatever ``forward`` rebinds, adds or writes to among the attributes of the
    user's own modules, in containers and objects that they hold (metrics, meters, generators, modules in lists)
    included. A failure in putting one part back does not stop the others, and is reported.

    Inside, the random streams start from a fixed seed, so that a probe with random transforms stays the same
    probe; autocast is off; Lightning's ``log``, ``log_dict``, ``print`` and loggers do nothing. In one process one
    such block runs at a time: another thread that enters one waits.

    Parameters are watched, not copied (that would double the memory): assigned storage is put back, and so are values
    that ``forward`` writes to a parameter, also through ``parameter.data``, if ``written`` is given and its first block
    found the write, as it does of all that operations of torch write; any other write is reported, because it cannot
    be undone. ``nn.Embedding(max_norm=...)``, which writes to its weight by design, is always put back. Of a model that
    is sharded over processes (FSDP) or quantised, writes are neither found nor put back. Out of reach: generators that
    a dataset owns; globals and attributes of classes; objects more than three steps away from a module. Of a model
    that is sharded over processes (FSDP), hooks and children are left to what shards it.

    Args:
        model: any module; one that is wrapped (``torch.compile``, DDP) may be given wrapped.
        warn: takes the message and its cause; by default :func:`warnings.warn`.
        written: what is known of the writes of this model to its parameters; learns from the block.

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
    found = _Found()
    try:
        with ExitStack() as stack:
            stack.enter_context(preserved_rng())
            for module in list(model.modules()):
                stack.callback(setattr, module, "training", module.training)
            kept, parameters = Kept(model), parameter_states(model)
            stack.callback(lambda: found.add_written(parameters, kept.parameters))
            if written is not None:
                _keep_written(model, kept, written)
            stack.callback(lambda: found.add(kept.put_back()))
            stack.callback(lambda: found.add(put_back_parameters(parameters)))
            stack.enter_context(logging_off(model))
            stack.enter_context(_no_reuse_of_weights())
            # Inference mode first: leaving it turns gradients on. A tensor made in it could not be used in place.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(autocast_off(model))
            for module in model.modules():
                module.training = False
            if written is not None and not written.looked:
                stack.enter_context(before_writes(model, partial(_keep_before_write, kept, written)))
            yield
        if written is not None:
            written.looked = True
            written.names.update(found.written)
        if found.restored or found.written:
            _report(found.changes(model), warn)
    finally:
        if found.failed:  # also after an exception: the model is not as it was
            _report(found.failures(model), warn)


def _keep_written(model: nn.Module, kept: Kept, written: Written) -> None:
    for name, parameter in model.named_parameters():
        if name in written.names:
            kept.keep_parameter(name, parameter)


def _keep_before_write(kept: Kept, written: Written, name: str, parameter: Tensor) -> None:
    kept.keep_parameter(name, parameter)
    written.names.add(name)


@contextmanager
def autocast_off(model: nn.Module) -> Iterator[None]:
    """Let the layers compute in the dtype of their weights, whatever autocast surrounds the block.

    Half precision moves markers by more than their standard error where features are nearly collapsed.
    """
    with ExitStack() as stack:
        for device_type in {"cpu", *(parameter.device.type for parameter in model.parameters())} - {"meta"}:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        for module in model.modules():
            # Accelerate, also within transformers, replaces ``forward`` by one that turns autocast on.
            if {"forward", "_original_forward"} <= vars(module).keys():
                stack.callback(setattr, module, "forward", module.forward)
                module.forward = module._original_forward  # type: ignore[assignment]
        yield


@contextmanager
def _no_reuse_of_weights() -> Iterator[None]:
    """No weight is cached: what is computed here has no gradient, and a training step after it must not find it.

    Autocast caches weights that it has cast (pytorch/pytorch issue 158232), ``parametrize.cached()`` those that it
    has computed.
    """
    autocast, parametrized = torch.is_autocast_cache_enabled(), parametrize._cache_enabled
    torch.set_autocast_cache_enabled(False)
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(autocast)
        parametrize._cache_enabled = parametrized


@dataclass
class _Found:
    """What had changed when the block ended."""

    restored: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    error: Exception | None = None

    def add(self, put_back: PutBack) -> None:
        self.restored += put_back.restored
        self.failed += put_back.failed
        self.error = self.error or put_back.error

    def add_written(self, states: Sequence[ParameterState], copied: Collection[str]) -> None:
        self.written += written_parameters(states, {*self.restored, *copied})

    def changes(self, model: nn.Module) -> tuple[str, str]:
        """Message and cause."""
        reports = [f"put back {_listed(self.restored)}"] if self.restored else []
        if self.written:
            reports.append(f"wrote to parameters, which cannot be undone: {_listed(self.written)}")
        cause = "; ".join(reports)
        return (
            f"in evaluation mode the forward pass of {type(model).__name__} still changes its own state: "
            f"{cause}. To measure without this, let forward write only `if self.training`."
        ), cause

    def failures(self, model: nn.Module) -> tuple[str, str]:
        """Message and cause."""
        names = _listed(self.failed)
        return (
            f"the forward pass of {type(model).__name__} changed its state, and these parts could not be put back: "
            f"{names} ({type(self.error).__name__}: {self.error}). They hold what the probe pass wrote, and training "
            "continues from there. Let forward write to them only `if self.training`."
        ), f"not put back: {names}"


def _report(message_and_cause: tuple[str, str], warn: Callable[[str, str], None] | None) -> None:
    if warn is None:
        warnings.warn(message_and_cause[0], GeomonitorWarning, stacklevel=4)
    else:
        warn(*message_and_cause)


def _refuse_lazy(model: nn.Module) -> None:
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise MeasurementError(
            f"the model has parameters without a shape: {_listed(lazy)}. A probe pass would create them; "
            "run one training batch first."
        )


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
