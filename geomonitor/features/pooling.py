"""From the activations of a layer to one row of features for each point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from geomonitor import _options
from geomonitor.errors import InputError, MeasurementError
from geomonitor.features.layers import Layer, listed

PoolName = Literal["auto", "mean", "first", "last", "flatten", "tokens"]
Pool: TypeAlias = "PoolName | Callable[[Tensor, Tensor | None], Tensor]"

# torch's layers whose 3-D tensors are (B, C, L), not (B, L, N).
_LENGTH_LAST = (
    *(nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm),
    *(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d),
)
# They work on the last dimension, whatever comes before it; also what a library has in the place of ``nn.Linear``.
_WIDTHS = ("in_features", "out_features", "normalized_shape")
# Usual names of the features in a module that takes or returns several named tensors.
_USUAL_NAMES = ("sentence_embedding", "last_hidden_state", "hidden_states", "input", "x")
# They state with their attention layers whether points or time steps come first.
_TRANSFORMERS = (
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)


def check_pooling(pool: Pool | RowsOfTokens, mask: Tensor | None = None) -> None:
    """Refuse an unknown pooling rule, and a mask that leaves a row without tokens."""
    if isinstance(pool, RowsOfTokens):
        pass
    elif callable(pool):
        _options.function("pool", pool, "tensor, mask")
    elif not isinstance(pool, str) or pool not in get_args(PoolName):
        raise InputError(f"pool must be one of {', '.join(get_args(PoolName))} or a function, not {pool!r}")
    if mask is None:
        return
    _options.instance("mask", mask, Tensor, "a tensor (B, L), nonzero at tokens")
    if mask.ndim != 2:
        raise InputError(f"expected a mask (B, L), nonzero at tokens, found shape {tuple(mask.shape)}")
    empty = int((~mask.bool().any(dim=1)).sum().item())
    if empty:
        raise InputError(
            f"{empty} of {len(mask)} rows of the mask have no token, so their features are undefined: leave "
            "these items out. The mask must be nonzero at tokens and 0 at padding; convert an additive or an "
            "inverted one (key_padding_mask)"
        )


def _first_tensor(value: Any, layer: Layer) -> Tensor:
    """The tensor itself, or the one that stands for a tuple, a dict or an output object."""
    found: Any = value
    if isinstance(value, Mapping):
        tensors = {key: item for key, item in value.items() if isinstance(item, Tensor)}
        usual = [tensors[key] for key in _USUAL_NAMES if key in tensors]
        found = usual[0] if usual else next(iter(tensors.values()), None) if len(tensors) == 1 else None
    elif isinstance(value, (tuple, list)) and not any(isinstance(v, PackedSequence) for v in (value, *value)):
        found = next((item for item in value if isinstance(item, Tensor)), None)
    elif not isinstance(value, Tensor):
        found = getattr(value, "last_hidden_state", None)
    found = getattr(value, layer.part, None) if layer.part else found
    if not isinstance(found, Tensor) or found.is_nested:
        what = f"a mapping with {listed(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
        if isinstance(value, tuple) and any(isinstance(item, PackedSequence) for item in value):
            what += " with a PackedSequence"
        raise MeasurementError(
            f"the {layer.side} of layer {layer.path!r} is {what}, in which no plain tensor stands out as its "
            "features: name a layer inside it or after it"
        )
    return found


class RowsOfTokens:
    """A rule that makes rows of tokens ``(B, L, N)``, batch first; for layers that give tokens only."""

    optional = False
    """whether a layer without tokens has a row of -1 for each point, and not an error"""

    def rows(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Rows ``(n, K)`` of tokens ``(B, L, N)``, of which the mask ``(B, L)`` keeps some.

        Raises:
            MeasurementError: tokens that do not fit the rule.
        """
        raise NotImplementedError


class TokensAt(RowsOfTokens):
    """The rows of some tokens, each named by its sequence and its number in it, padding not counted.

    Args:
        sequences: ``(n,)`` rows of the batch.
        places: ``(n,)``.

    >>> x = torch.arange(6.0).view(1, 3, 2)
    >>> TokensAt(torch.tensor([0]), torch.tensor([1])).rows(x, torch.tensor([[0, 1, 1]]))  # padded left
    tensor([[4., 5.]])
    """

    def __init__(self, sequences: Tensor, places: Tensor) -> None:
        self.sequences, self.places = sequences, places

    def rows(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`RowsOfTokens.rows`; ``(n, N)``."""
        sequences, places = self.sequences.to(tokens.device), self.places.to(tokens.device)
        kept = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
        if len(sequences) and int(sequences.max()) >= len(tokens):
            raise MeasurementError(
                f"a batch of at least {int(sequences.max()) + 1} sequences gave {len(tokens)} rows of tokens: let "
                "collate_fn and the model keep all sequences apart, in their order"
            )
        if len(sequences) and bool((places >= kept.sum(dim=1)[sequences]).any()):
            raise MeasurementError(
                f"a batch has sequences of at most {int(kept.sum(dim=1).max())} tokens, and token "
                f"{int(places.max())} of one is a point: let collate_fn cut no sequence, and give an attention_mask "
                "of the padding"
            )
        columns = torch.argsort((~kept).int(), dim=1, stable=True)  # of the tokens, those kept first
        return tokens[sequences, columns[sequences, places]]


class Pooling:
    """What turns the activations of a layer into one row for each point.

    Args:
        pool: the rule.
        mask: ``(B, L)``, nonzero at tokens.
        modules: those of the model: if one of them has time steps before points, others may have them too.
        detach: whether the rows are without a gradient.
    """

    def __init__(
        self, pool: Pool | RowsOfTokens, mask: Tensor | None, modules: Iterable[nn.Module], *, detach: bool = True
    ) -> None:
        self.pool = pool
        self.mask = mask
        self._gradients = not detach
        self._may_be_length_first = any(getattr(module, "batch_first", True) is False for module in modules)

    def features(self, value: Any, layer: Layer, module: nn.Module) -> tuple[Tensor, str]:
        """Pool what a hook saw into a new tensor ``(B, N)``; with the dtype in which the layer computed."""
        tensor = _first_tensor(value, layer)
        own: Any = layer.asked_pool or (layer.pool if self.pool == "auto" else self.pool) or "auto"
        pool: Pool | RowsOfTokens = self.pool if isinstance(self.pool, RowsOfTokens) else own
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise MeasurementError(
                f"layer '{layer}' runs inside a transform of torch.func (vmap, grad, ...), in which its features have "
                "no values of their own: give forward= a function that calls the model on the whole batch without it"
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.ndim == 3 and not callable(pool) and not isinstance(module, _LENGTH_LAST):
            tensor = self._batch_first(tensor, layer, module)
        # A copy, because the model may go on to write into this tensor (an in-place ReLU); outside inference
        # mode, because a tensor made there could never be changed afterwards.
        with torch.inference_mode(False), torch.set_grad_enabled(self._gradients and torch.is_grad_enabled()):
            mask = None if self.mask is None else self.mask.to(tensor.device).bool()
            if pool in ("auto", "mean"):
                tensor = channels_second(tensor, module)
            return _pooled(tensor, pool, mask, layer, isinstance(module, _LENGTH_LAST)).clone(), dtype

    def _batch_first(self, tensor: Tensor, layer: Layer, module: nn.Module) -> Tensor:
        batch_first = _is_batch_first(module)
        if batch_first is None and self._may_be_length_first and tensor.shape[0] == tensor.shape[1]:
            raise MeasurementError(
                f"layer '{layer}' gives a tensor of shape {tuple(tensor.shape)}, and the model has layers with "
                "batch_first=False: whether points or time steps come first cannot be seen. Give a pool function of "
                "(tensor, mask) that returns (B, N), or a batch_size that is not the number of time steps"
            )
        return tensor.transpose(0, 1) if batch_first is False else tensor


def channels_second(tensor: Tensor, module: nn.Module) -> Tensor:
    """Places ``(B, H, W, N)`` as ``(B, N, H, W)``, if the module that takes or gives them works on the last dimension.

    >>> channels_second(torch.zeros(2, 7, 7, 5), nn.Linear(5, 3)).shape
    torch.Size([2, 5, 7, 7])
    """
    widths = [getattr(module, name, None) for name in _WIDTHS]
    last = tensor.shape[-1:]
    of_last = any(last == (tuple(width) if isinstance(width, (tuple, list)) else (width,)) for width in widths)
    return tensor.movedim(-1, 1) if tensor.ndim in (4, 5) and of_last else tensor


def is_length_last(module: nn.Module) -> bool:
    """Whether the length is the last dimension of what a module takes and gives."""
    return isinstance(module, _LENGTH_LAST)


def mean_of_places(tensor: Tensor, module: nn.Module) -> Tensor:
    """Places ``(B, N, ...)`` of a module as rows ``(B, N)``."""
    return _mean(channels_second(tensor, module).flatten(2), dim=2)


def _is_batch_first(module: nn.Module) -> bool | None:
    """Whether points come before time steps in what a module takes and gives; None if it does not state it."""
    stating = module.modules() if isinstance(module, _TRANSFORMERS) else [module]
    stated = (getattr(inner, "batch_first", None) for inner in stating)
    return next((answer for answer in stated if isinstance(answer, bool)), None)


def _pooled(tensor: Tensor, pool: Pool | RowsOfTokens, mask: Tensor | None, layer: Layer, length_last: bool) -> Tensor:
    if isinstance(pool, RowsOfTokens) or pool == "tokens":
        return _rows_of_tokens(
            tensor.transpose(1, 2) if length_last and tensor.ndim == 3 else tensor, pool, mask, layer
        )
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


def _rows_of_tokens(tokens: Tensor, pool: Any, mask: Tensor | None, layer: Layer) -> Tensor:
    optional = isinstance(pool, RowsOfTokens) and pool.optional
    if optional and (tokens.ndim != 3 or (mask is not None and mask.shape != tokens.shape[:2])):
        return torch.full((len(tokens), 1), -1.0, dtype=torch.float64)
    if tokens.ndim != 3:
        raise MeasurementError(
            f"layer '{layer}' gives a tensor of shape {tuple(tokens.shape)}, in which there are no tokens (B, L, N): "
            "name a layer ahead of the pooling, or measure one row a sequence (a ProbeSet, and not pool='tokens')"
        )
    _check_mask(tokens, mask, layer)
    if isinstance(pool, RowsOfTokens):
        return pool.rows(tokens, mask)
    return tokens.flatten(0, 1) if mask is None else tokens[mask]


def pooled_as(tokens: Tensor, rule: PoolName, mask: Tensor | None) -> Tensor:
    """Tokens ``(B, L, N)`` as rows ``(B, N)`` by one of the rules for tokens.

    Raises:
        MeasurementError: a mask of another shape.

    >>> pooled_as(torch.arange(6.0).view(1, 3, 2), "last", torch.tensor([[1, 1, 0]]))
    tensor([[2., 3.]])
    """
    return _pooled_tokens(tokens, rule, None if mask is None else mask.bool(), Layer("", "output"))


def _pooled_tokens(tokens: Tensor, pool: PoolName, mask: Tensor | None, layer: Layer) -> Tensor:
    if mask is None or _is_one(tokens, mask):
        return tokens[:, 0] if pool == "first" else tokens[:, -1] if pool == "last" else _mean(tokens, dim=1)
    _check_mask(tokens, mask, layer)
    if pool in ("first", "last"):
        steps = (mask.int() if pool == "first" else mask.int().flip(1)).argmax(dim=1)
        position = steps if pool == "first" else mask.shape[1] - 1 - steps
        return tokens[torch.arange(len(tokens), device=tokens.device), position]
    # Padding may hold anything, NaN included, so it is replaced and not multiplied by zero.
    kept = torch.where(mask[:, :, None], tokens, 0)
    return kept.sum(dim=1, dtype=_accumulator(kept)) / mask.sum(dim=1, keepdim=True)


def _is_one(tokens: Tensor, mask: Tensor | None) -> bool:
    """Whether a point has one token alone, which the mask of its other tokens does not concern."""
    return tokens.shape[1] == 1 and mask is not None and mask.shape[1] != 1 and len(mask) == len(tokens)


def _check_mask(tokens: Tensor, mask: Tensor | None, layer: Layer) -> None:
    if mask is not None and mask.shape != tokens.shape[:2]:
        raise MeasurementError(
            f"layer '{layer}' gives tokens of shape {tuple(tokens.shape)}, but the mask is of shape "
            f"{tuple(mask.shape)}: it needs one column for each token, batch first, added tokens included"
        )


def _mean(tensor: Tensor, dim: int) -> Tensor:
    return tensor.mean(dim, dtype=_accumulator(tensor))


def _accumulator(tensor: Tensor) -> torch.dtype | None:
    narrow = tensor.dtype in (torch.float16, torch.bfloat16) or not (tensor.is_floating_point() or tensor.is_complex())
    return torch.float32 if narrow else None
