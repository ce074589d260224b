"""Features of named layers, as a (B, N) tensor each, from hooks that live as long as a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geomonitor import _options
from geomonitor.errors import MeasurementError
from geomonitor.features.hooks_run import hooks_run
from geomonitor.features.layers import (
    PENULTIMATE,
    Layer,
    Layers,
    linear_paths,
    listed,
    plain_modules,
    resolve_in,
    resolve_layers,
)
from geomonitor.features.network import network_in
from geomonitor.features.pooling import Pool, Pooling, RowsOfTokens, check_pooling

__all__ = ["Features", "Layer", "Layers", "Pool", "captured", "check_pooling", "resolve_layers"]


class Features(dict[str, Tensor]):
    """Features ``(B, N)`` by alias of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, str] = {}
        """dtype in which the layer computed, by alias: ``"float32"``, ``"bfloat16"``, ..."""


@contextmanager
def captured(
    model: nn.Module,
    layers: Layers = PENULTIMATE,
    *,
    pool: Pool | RowsOfTokens = "auto",
    mask: Tensor | None = None,
    detach: bool = True,
) -> Iterator[Features]:
    """Record features of named layers during one forward pass; no hook is left after the block.

    Pooling goes by the number of dimensions of what the layer gives: (B, N) stays; (B, C, H, W) and
    (B, C, D, H, W) become the mean over space; (B, L, N) is read as tokens, batch first, and becomes with
    ``"auto"`` or ``"mean"`` the mean over the unmasked tokens, with ``"first"`` or ``"last"`` the first or
    last unmasked one. A module with an attribute ``batch_first=False``, and torch's transformers of such layers, are
    read as (L, B, N). ``"auto"`` takes the length to be the last dimension for torch's own 1-d convolution,
    normalisation and pooling layers, and channels to be last, (B, H, W, N), if the module is a linear layer or a
    layer normalisation. ``"flatten"`` makes (B, everything else) of anything. For any other layout (a block with
    channels last, a block of 1-d convolutions) give a function of (tensor, mask), which gets the tensor as it is.

    A module that runs several times in one forward pass must give the same features each time. Of a module that
    returns several tensors the first is taken, or ``last_hidden_state`` if it exists. Code from
    ``torch.compile`` runs uncompiled inside the block, since hooks do not run in compiled code, and is used
    again afterwards without a recompilation; the fused path of ``nn.TransformerEncoder`` is off for the same
    reason. This function does not restore modes, gradients and random numbers: see ``undisturbed``.

    Args:
        model: the model, wrapped or not; call it inside the block, once.
        layers: as for ``resolve_layers``, or what that returned.
        pool: ``"auto"``, ``"mean"``, ``"first"``, ``"last"``, ``"flatten"``, ``"tokens"`` (each unmasked token is a
            row, sequence after sequence), or a function.
        mask: (B, L), nonzero at tokens and 0 at padding, like ``attention_mask``.
        detach: False: the copies are differentiable, if gradients are on in the block.

    Yields:
        Alias to features (B, N), filled in as the layers run: by default detached copies in the dtype of the
        activations, except that means of half-precision activations are float32. ``dtypes`` has that dtype by alias.

    Raises:
        InputError: as ``resolve_layers``; an unknown ``pool``; a mask that is not (B, L) or has an empty row.
        MeasurementError: on leaving the block, never in the model's forward pass: a layer that did not run, or ran
            several times with other features; another ``nn.Linear`` that ran after the one taken for
            ``"penultimate"``; activations that no rule covers, or in which points may be time steps.
        Exception: on leaving the block, what a ``pool`` function raised.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        >>> with captured(model, {"early": "0", "late": "3:input"}) as features:
        ...     logits = model(torch.ones(5, 1, 6, 6))
        >>> {alias: tuple(tensor.shape) for alias, tensor in features.items()}
        {'early': (5, 8), 'late': (5, 8)}
    """
    modules = plain_modules(model)
    resolved = resolve_in(modules, layers)
    check_pooling(pool, mask)
    pooling = Pooling(pool, mask, modules.values(), detach=_options.flag("detach", detach))
    features = Features()
    failures: list[Exception] = []
    linears_run: list[str] = []
    with ExitStack() as stack:
        for alias, layer in resolved.items():
            keep = partial(_keep, features, alias, layer)
            module = modules[layer.path] if layer.path else network_in(modules[""])
            stack.callback(_observe(module, layer, pooling, keep, failures).remove)
        if any(layer.automatic for layer in resolved.values()):
            for path in linear_paths(modules):
                stack.callback(_note_runs(modules[path], path, linears_run).remove)
        stack.enter_context(hooks_run())
        yield features
    if failures:
        raise failures[0]
    _check_run(resolved, features, modules, linears_run)


def _keep(features: Features, alias: str, layer: Layer, found: tuple[Tensor, str]) -> None:
    rows, dtype = found
    earlier = features.get(alias)
    if earlier is not None and not torch.equal(earlier, rows):
        raise MeasurementError(
            f"layer {alias!r} ({layer}) ran several times in one forward pass and gave other features each time (first "
            f"{len(earlier)} rows, then {len(rows)}): which of them are to be measured is not known. Name a layer that "
            "runs once, such as a module around it or after it, or give forward= a function that calls it once, on the "
            "whole batch"
        )
    features[alias], features.dtypes[alias] = rows, dtype


def _observe(
    module: nn.Module,
    layer: Layer,
    pooling: Pooling,
    keep: Callable[[tuple[Tensor, str]], None],
    failures: list[Exception],
) -> RemovableHandle:
    def pooled(value: Any) -> None:
        try:
            keep(pooling.features(value, layer, module))
        except Exception as error:  # noqa: BLE001 - raised after the forward pass (maybe of a validation loop)
            failures.append(error)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pooled(args if any(isinstance(value, Tensor) for value in args) else kwargs)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        pooled(output)

    if layer.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _note_runs(module: nn.Module, path: str, runs: list[str]) -> RemovableHandle:
    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        runs.append(path)

    return module.register_forward_pre_hook(note)


def _check_run(
    layers: Mapping[str, Layer],
    features: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    linears_run: list[str],
) -> None:
    silent = [f"{alias!r} ({layer})" for alias, layer in layers.items() if alias not in features]
    ran = f"nn.Linear layers that ran: {listed(dict.fromkeys(linears_run))}. " if linears_run else ""
    if silent:
        raise MeasurementError(
            f"no forward pass reached {listed(silent)} inside the block: call the model there, and choose "
            "layers that it calls (TorchScript, and weights used without calling their module, run no hooks) "
            f"{ran}The model has {listed(path for path in modules if path)}"
        )
    for layer in layers.values():
        last = linears_run[-1] if linears_run else layer.path
        if layer.automatic and modules[last] is not modules[layer.path] and not last.startswith(f"{layer.path}."):
            raise MeasurementError(
                f"'penultimate' is ambiguous: {layer.path!r} is the last nn.Linear of the model, but "
                f"{linears_run[-1]!r} runs after it. {ran}Choose, for example "
                f"layers='{linears_run[-1]}:input'"
            )
