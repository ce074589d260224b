"""How a model reads logits from what its head gives: numbers of our own go in the head's place, and come out again.

The head's own numbers would not do: those of a head that begins at zero are the same for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.functional import cosine_similarity

from geomonitor.errors import MeasurementError
from geomonitor.features.layers import Layer
from geomonitor.features.outputs import outputs_of
from geomonitor.features.pooling import PoolName, is_length_last, mean_of_places, pooled_as
from geomonitor.features.trace import Trace, tensors_in

RULES: tuple[PoolName, ...] = ("last", "first", "mean")
"""by which the rows of tokens may become one"""
_HALF = (torch.float16, torch.bfloat16)
_FAR, _FAR_IN_HALF = 1e-3, 0.02
"""by which 1 - cosine may differ from 0; more in half precision, whose steps are 0.004 of an entry"""
_ROUNDING, _ROUNDING_IN_HALF = 1e-4, 0.02
"""of what was only pooled, relative to its length"""
_TOKENS, _WORDS = 64, 1024
"""of a text and of a vocabulary that are compared"""
_ENOUGH = 6
"""numbers that are free to differ; with fewer, cosines are near one by chance"""


class Traced(NamedTuple):
    """A forward pass of a few points."""

    trace: Trace
    output: Any
    """of the model"""
    mask: Tensor | None
    """``(B, L)``, nonzero at tokens"""
    stand: Callable[[str], tuple[Tensor, Any] | None]
    """runs the points again with numbers in the place of what a module gives: these, and the output of the model"""


class Reading(NamedTuple):
    """How rows of a head become logits."""

    rule: str
    """``""``: row for row, or the mean over places"""
    exact: bool
    """whether the logits are these rows, with nothing after the pooling"""


class Read(NamedTuple):
    """A head of whose tokens the model reads one row."""

    layer: Layer
    """what the head gives, pooled by the rule"""
    exact: bool
    """as of :class:`Reading`"""


@contextmanager
def numbers_in_place_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module gives is replaced by random numbers inside the block; yields these, for each of its runs.

    What the module gives is a copy of them, to which the model may write.

    >>> head = nn.Linear(2, 3)
    >>> with numbers_in_place_of(head) as numbers:
    ...     out = head(torch.zeros(4, 2))
    >>> bool((out == numbers[0]).all()), bool(out.std() > 0)
    (True, True)
    """
    numbers: list[Tensor] = []

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        if type(output) is not Tensor or is_functorch_wrapped_tensor(output) or not output.is_floating_point():
            return None
        # On the device: of a language model it is a number for each token and each word of the vocabulary.
        device = output.device if output.device.type == "cuda" else torch.device("cpu")
        stream = torch.Generator(device).manual_seed(len(numbers))
        numbers.append(torch.randn(output.shape, generator=stream, device=device).to(output))
        return numbers[-1].clone()

    hook = module.register_forward_hook(replace)
    try:
        yield numbers
    finally:
        hook.remove()


def read_by(gives: Tensor, logits: Tensor, mask: Tensor | None, module: nn.Module) -> Reading | None:
    """The rule by which rows of a head become logits; None: none of those that are known.

    The two may differ by what moves all logits of a point, and by a factor: (log-)softmax, a temperature.

    Args:
        gives: ``(B, C)``, tokens ``(B, L, C)`` or places ``(B, C, H, W)``, from the head.
        logits: of the model.
        mask: ``(B, L)``, nonzero at tokens.
        module: the head.

    >>> x, head = torch.randn(5, 3, 4), nn.Linear(2, 4)
    >>> read_by(x, x.mean(1).log_softmax(1), None, head), read_by(x, x.amax(1), None, head)
    (Reading(rule='mean', exact=False), None)
    """
    found: dict[PoolName | Literal[""], Tensor] = {}
    if gives.ndim < 2:  # of one point alone
        return None
    if gives.ndim == logits.ndim:
        found[""], logits = gives[..., :_WORDS], logits[..., :_WORDS]
        if gives.ndim == 3:
            found[""], logits = found[""][:, :_TOKENS], logits[:, :_TOKENS]
    elif gives.ndim != 3 or is_length_last(module):
        found[""] = mean_of_places(gives, module)
    else:
        for rule in RULES:
            with suppress(MeasurementError):  # tokens that the mask does not cover
                found[rule] = pooled_as(gives, rule, mask)
    found = {rule: rows for rule, rows in found.items() if rows.shape == logits.shape}
    for exact in (True, False):
        for name, rows in found.items():
            if _agree(rows, logits, exact=exact):
                return Reading(name, exact)
    return None


def reading_of(traced: Traced, modules: Mapping[str, nn.Module], path: str, name: str) -> Reading | None:
    """How the model turns what a head gives into one of its outputs; None: by no rule that is known.

    Args:
        traced: a forward pass.
        modules: of the model by path.
        path: of the head.
        name: of the output, by the names of ``outputs_of``.
    """
    call, logits = traced.trace.call_of(path), outputs_of(traced.output)[name]
    given = [tensor for tensor in tensors_in(call.gives) if not is_functorch_wrapped_tensor(tensor)] if call else []
    unwritten = call is not None and not traced.trace.written_after(call)
    if given and unwritten and (given[0] is logits or _same(given[0], logits)):
        return Reading("", True)
    stood = traced.stand(path)
    if stood is not None and name in (again := outputs_of(stood[1])):
        return read_by(stood[0], again[name], traced.mask, modules[path])
    return read_by(given[0], logits, traced.mask, modules[path]) if given and unwritten else None


def places_read_by(module: nn.Module, taken: Tensor) -> Literal["mean", "flatten"] | None:
    """Which row a head makes of the places that it takes, if the model takes the mean over what it gives.

    Args:
        module: the head.
        taken: ``(B, N, ...)``.

    Returns:
        ``"flatten"`` if a convolution covers all places at once; None if it looks at several of them at a time.

    >>> places_read_by(nn.Conv2d(3, 4, 1), torch.zeros(2, 3, 5, 5)), places_read_by(nn.Linear(3, 4), torch.zeros(2, 3))
    ('mean', 'mean')
    >>> [places_read_by(nn.Conv1d(3, 4, kernel), torch.zeros(2, 3, 5)) for kernel in (5, 2)]
    ['flatten', None]
    """
    kernel: Any = getattr(module, "kernel_size", None)
    places = tuple(taken.shape[2:])
    if not isinstance(kernel, tuple) or len(kernel) != len(places) or set(places) == {1}:
        return "mean"
    padding: Any = getattr(module, "padding", ())
    inside = padding == "valid" or not any(padding) or (padding == "same" and set(kernel) == {1})
    if inside and set(kernel) == set(getattr(module, "stride", ())) == {1}:
        return "mean"
    return "flatten" if inside and kernel == places else None


def require_reading(rows: Mapping[str, Tensor], logits: Tensor | None, rules: Mapping[str, Read]) -> None:
    """Refuse a batch in which the model reads other tokens than in the traced pass.

    Args:
        rows: ``(B, C)`` of heads, pooled by the rule of the traced pass, by alias.
        logits: ``(B, C)`` of the model.
        rules: heads by alias.

    Raises:
        MeasurementError: for how many points the two differ.
    """
    for alias, found in rows.items():
        if logits is None or found.shape != logits.shape:
            continue
        layer, exact = rules[alias]
        apart = _apart(found, logits, exact=exact)
        if bool(apart.any()):
            rule, path = layer.pool, layer.path
            raise MeasurementError(
                f"for {int(apart.sum())} of {len(apart)} points of a batch the model reads logits from another row of "
                f"{path!r} than the {rule!r} one of the mask, which it reads for the first points. Does the "
                "attention_mask cover tokens that the model takes for padding (an end of text with the id of "
                "config.pad_token_id), or leave out some that it does not? Let the two agree, or give pool= a function "
                "of (tensor, mask) that returns the row that the model reads"
            )


def _same(gives: Tensor, logits: Tensor) -> bool:
    """Whether two outputs are equal apart from their dtype, and not all zero."""
    return gives.shape == logits.shape and torch.equal(gives.to(logits.dtype), logits) and bool(logits.any())


def _agree(rows: Tensor, logits: Tensor, *, exact: bool) -> bool:
    half = bool({rows.dtype, logits.dtype} & set(_HALF))
    one, other = (value.detach().double() for value in (rows, logits))
    if exact:
        return bool((one - other).norm() <= (_ROUNDING_IN_HALF if half else _ROUNDING) * one.norm())
    if rows.shape[-1] > 1:
        probabilities = bool((other > 0).all()) and bool(((other.sum(dim=-1) - 1).abs() < _ROUNDING_IN_HALF).all())
        other = other.log() if probabilities else other
        one, other = (value - value.mean(dim=-1, keepdim=True) for value in (one, other))
    free = one.numel() - (len(one) if rows.shape[-1] > 1 else 0)
    cosine = cosine_similarity(one.flatten(), other.flatten(), dim=0)
    return free >= _ENOUGH and bool(cosine > 1 - (_FAR_IN_HALF if half else _FAR))


def _apart(found: Tensor, logits: Tensor, *, exact: bool) -> Tensor:
    """Which rows ``(B,)`` of logits are not those of a head; if not ``exact``, have their columns in another order."""
    rounding = _ROUNDING_IN_HALF if {found.dtype, logits.dtype} & set(_HALF) else _ROUNDING
    one, other = (value.detach().double() for value in (found, logits))
    if exact:
        apart: Tensor = (one - other).norm(dim=1) > rounding * (one.norm(dim=1) + other.norm(dim=1))
        return apart
    steps = other.gather(1, one.argsort(dim=1)).diff(dim=1)  # log(softmax + 1e-8) and the like keep the order alone
    falls: Tensor = steps < -rounding * other.norm(dim=1, keepdim=True)
    return falls.any(dim=1)
