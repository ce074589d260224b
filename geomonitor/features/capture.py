"""Features of named layers, as a (B, N) tensor each, from hooks that live as long as a ``with`` block."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from geomonitor.errors import InputError, MeasurementError
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

__all__ = ["Layer", "Layers", "Pool", "captured", "resolve_layers"]

PoolName = Literal["auto", "mean", "first", "last", "flatten"]
Pool: TypeAlias = "PoolName | Callable[[Tensor, Tensor | None], Tensor]"

# torch's layers whose 3-D tensors are (B, C, L), not (B, L, N).
_LENGTH_LAST = (
    *(nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm),
    *(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d),
)
# Usual names of the features in a module that takes or returns several named tensors.
_USUAL_NAMES = ("last_hidden_state", "hidden_states", "input", "x")


@contextmanager
def captured(
    model: nn.Module, layers: Layers = PENULTIMATE, *, pool: Pool = "auto", mask: Tensor | None = None
) -> Iterator[dict[str, Tensor]]:
    """Record features of named layers during one forward pass; no hook is left after the block.

    Pooling goes by the number of dimensions of what the layer gives: (B, N) stays; (B, C, H, W) and
    (B, C, D, H, W) become the mean over space; (B, L, N) is read as tokens, batch first, and becomes with
    ``"auto"`` or ``"mean"`` the mean over the unmasked tokens, with ``"first"`` or ``"last"`` the first or
    last unmasked one. ``"auto"`` takes the length to be the last dimension for torch's own 1-d convolution,
    normalisation and pooling layers. ``"flatten"`` makes (B, everything else) of anything. For any other
    layout (channels last, a block of 1-d convolutions, length first) give a function of (tensor, mask).

    A module that runs several times in one forward pass gives the features of its last run. Of a module that
    returns several tensors the first is taken, or ``last_hidden_state`` if it exists. Code from
    ``torch.compile`` runs uncompiled inside the block, since hooks do not run in compiled code, and is used
    again afterwards without a recompilation; the fused path of ``nn.TransformerEncoder`` is off for the same
    reason. This function does not restore modes, gradients and random numbers: see ``undisturbed``.

    Args:
        model: the model, wrapped or not; call it inside the block, once.
        layers: as for ``resolve_layers``, or what that returned.
        pool: ``"auto"``, ``"mean"``, ``"first"``, ``"last"``, ``"flatten"``, or a function.
        mask: (B, L), nonzero at tokens and 0 at padding, like ``attention_mask``.

    Yields:
        Alias to features (B, N), filled in as the layers run: detached copies in the dtype of the
        activations, except that means of half-precision activations are float32.

    Raises:
        InputError: as ``resolve_layers``; an unknown ``pool``; a mask that is not (B, L) or has an empty row.
        MeasurementError: on leaving the block, never in the model's forward pass: a layer that did not run, another
            ``nn.Linear`` that ran after the one taken for ``"penultimate"``, activations that no rule covers.
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
    pooling = _Pooling(pool, mask)
    features: dict[str, Tensor] = {}
    failures: list[Exception] = []
    linears_run: list[str] = []
    with ExitStack() as stack:
        for alias, layer in resolved.items():
            keep = partial(features.__setitem__, alias)
            stack.callback(_observe(modules[layer.path], layer, pooling, keep, failures).remove)
        if any(layer.automatic for layer in resolved.values()):
            for path in linear_paths(modules):
                stack.callback(_note_runs(modules[path], path, linears_run).remove)
        if "torch._dynamo" in sys.modules:  # never imported: nothing is compiled, and importing takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        yield features
    if failures:
        raise failures[0]
    _check_run(resolved, features, modules, linears_run)


def check_pooling(pool: Pool, mask: Tensor | None = None) -> None:
    """Refuse an unknown pooling rule, and a mask that leaves a row without tokens."""
    if not callable(pool) and pool not in get_args(PoolName):
        raise InputError(f"pool must be one of {', '.join(get_args(PoolName))} or a function, not {pool!r}")
    if mask is None:
        return
    if mask.ndim != 2:
        raise InputError(f"expected a mask (B, L), nonzero at tokens, found shape {tuple(mask.shape)}")
    empty = int((~mask.bool().any(dim=1)).sum().item())
    if empty:
        raise InputError(
            f"{empty} of {len(mask)} rows of the mask have no token, so their features are undefined: leave "
            "these items out. The mask must be nonzero at tokens and 0 at padding; convert an additive or an "
            "inverted one (key_padding_mask)"
        )


def _observe(
    module: nn.Module, layer: Layer, pooling: _Pooling, keep: Callable[[Tensor], None], failures: list[Exception]
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


def _first_tensor(value: Any, layer: Layer) -> Tensor:
    """The tensor itself, or the one that stands for a tuple, a dict or an output object."""
    found: Any = value
    if isinstance(value, Mapping):
        tensors = {key: item for key, item in value.items() if isinstance(item, Tensor)}
        usual = [tensors[key] for key in _USUAL_NAMES if key in tensors]
        found = usual[0] if usual else next(iter(tensors.values()), None) if len(tensors) == 1 else None
    elif isinstance(value, (tuple, list)) and not isinstance(value, PackedSequence):
        found = next((item for item in value if isinstance(item, Tensor)), None)
    elif not isinstance(value, Tensor):
        found = getattr(value, _USUAL_NAMES[0], None)
    if not isinstance(found, Tensor) or found.is_nested:
        what = f"a mapping with {listed(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
        raise MeasurementError(
            f"the {layer.side} of layer {layer.path!r} is {what}, in which no plain tensor stands out as its "
            "features: name a layer inside it or after it"
        )
    return found


class _Pooling:
    """What turns the activations of a layer into one row for each item."""

    def __init__(self, pool: Pool, mask: Tensor | None) -> None:
        self.pool = pool
        self.mask = mask

    def features(self, value: Any, layer: Layer, module: nn.Module) -> Tensor:
        """Pool what a hook saw into a new tensor (B, N)."""
        tensor = _first_tensor(value, layer)
        # A copy, because the model may go on to write into this tensor (an in-place ReLU); outside inference
        # mode, because a tensor made there could never be changed afterwards.
        with torch.inference_mode(False), torch.no_grad():
            mask = None if self.mask is None else self.mask.to(tensor.device).bool()
            return _pooled(tensor, self.pool, mask, layer, isinstance(module, _LENGTH_LAST)).clone()


def _pooled(tensor: Tensor, pool: Pool, mask: Tensor | None, layer: Layer, length_last: bool) -> Tensor:
    if callable(pool):
        pooled = pool(tensor, mask)
        if not isinstance(pooled, Tensor) or pooled.ndim != 2:
            found = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
            raise InputError(f"the pool function must return a tensor (B, N), found {found} for '{layer}'")
        return pooled
    if tensor.ndim == 2:
        return tensor
    if pool == "flatten" and tensor.ndim > 2:
        return tensor.flatten(1)
    if tensor.ndim in (4, 5) and pool in ("auto", "mean"):
        return _mean(tensor.flatten(2), dim=2)
    if tensor.ndim == 3:
        by_length = pool == "auto" and length_last
        return _mean(tensor, dim=2) if by_length else _pooled_tokens(tensor, pool, mask, layer)
    raise MeasurementError(
        f"layer '{layer}' gives a tensor of shape {tuple(tensor.shape)}, which pool={pool!r} does not cover: "
        "use pool='flatten' or a function of (tensor, mask) that returns (B, N)"
    )


def _pooled_tokens(tokens: Tensor, pool: PoolName, mask: Tensor | None, layer: Layer) -> Tensor:
    if mask is None:
        return tokens[:, 0] if pool == "first" else tokens[:, -1] if pool == "last" else _mean(tokens, dim=1)
    if mask.shape != tokens.shape[:2]:
        raise MeasurementError(
            f"layer '{layer}' gives tokens of shape {tuple(tokens.shape)}, but the mask is of shape "
            f"{tuple(mask.shape)}: it needs one column for each token, batch first, added tokens included"
        )
    if pool in ("first", "last"):
        steps = (mask.int() if pool == "first" else mask.int().flip(1)).argmax(dim=1)
        position = steps if pool == "first" else mask.shape[1] - 1 - steps
        return tokens[torch.arange(len(tokens), device=tokens.device), position]
    # Padding may hold anything, NaN included, so it is replaced and not multiplied by zero.
    kept = torch.where(mask[:, :, None], tokens, 0)
    return kept.sum(dim=1, dtype=_accumulator(kept)) / mask.sum(dim=1, keepdim=True)


def _mean(tensor: Tensor, dim: int) -> Tensor:
    return tensor.mean(dim, dtype=_accumulator(tensor))


def _accumulator(tensor: Tensor) -> torch.dtype | None:
    narrow = tensor.dtype in (torch.float16, torch.bfloat16) or not (tensor.is_floating_point() or tensor.is_complex())
    return torch.float32 if narrow else None


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
        if layer.automatic and modules[linears_run[-1]] is not modules[layer.path]:
            raise MeasurementError(
                f"'penultimate' is ambiguous: {layer.path!r} is the last nn.Linear of the model, but "
                f"{linears_run[-1]!r} runs after it. {ran}Choose, for example "
                f"layers='{linears_run[-1]}:input'"
            )
