"""What the output of a router means: which experts each token gets, with which weights and probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from geomonitor.errors import MeasurementError
from geomonitor.features.routers import Router

SAME = 0.01
"""Largest difference of a router's own weights to those of a score function that is taken for its own: above the
rounding of bfloat16."""


EVEN = 1e-3
"""Largest difference of single weights, relative to the largest, that were brought to a sum of 1: LFM2 adds 1e-6 to the
sum."""


class Decisions(NamedTuple):
    """Of a router, for ``n`` tokens."""

    probabilities: Tensor | None
    """``(n, E)``, rows of sum 1; more than ``E`` columns if the router may choose no expert"""
    indices: Tensor
    """``(n, k)`` int64, the experts of a token"""
    weights: Tensor
    """``(n, k)``, rows of sum 1, or of 0: the token has no expert"""
    experts: int


def decisions(output: Any, router: Router, path: str) -> Decisions:
    """Read what a router gave; see :func:`geomonitor.captured_routing`.

    Raises:
        MeasurementError: it is no routing.
    """
    given = output if isinstance(output, (tuple, list)) else (output,)
    tensors = [each.detach().flatten(0, -2) for each in given if isinstance(each, Tensor) and each.ndim > 1]
    indices = next((each.long() for each in tensors if not each.is_floating_point()), None)
    tokens = len(tensors[0] if indices is None else indices) if tensors else 0
    floating = [each for each in tensors if each.is_floating_point() and len(each) == tokens]
    experts = _experts(router, floating, indices)
    if indices is None:
        found = _of_logits([each for each in floating if each.shape[1] == experts], router)
        why = " (a bias takes part in the choice)" if router.biased else ""
        problem = f"from which the chosen experts are not clear{why}"
    else:
        indices, floating = _of_mask(indices, floating, router, experts)
        found = _of_indices(indices, floating, router, experts) if _are_indices(indices, experts) else None
        problem = f"and the whole numbers are no indices of distinct experts below {experts}"
    if found is None:
        raise MeasurementError(f"router {path!r} gave {_described(given)}, {problem}: {_advice(router, path)}")
    return found


def _experts(router: Router, floating: Sequence[Tensor], indices: Tensor | None) -> int:
    """Of the numbers that are known, the first that an output has; logits may have more, for no expert (Zaya)."""
    known = (*([] if router.weight is None else [len(router.weight)]), *router.experts)
    columns = [each.shape[1] for each in floating]
    if (found := next((number for number in known if number in columns), None)) is not None:
        return found
    return (
        known[0] if known and indices is not None else max(columns, default=0 if indices is None else indices.shape[1])
    )


def _of_logits(over_experts: Sequence[Tensor], router: Router) -> Decisions | None:
    """Of logits, or of logits and weights in which other experts have 0 (Llama 4), in any order."""
    k = router.per_token
    if not over_experts or len(over_experts) > 2 or k is None or k > (experts := over_experts[0].shape[1]):
        return None
    if len(over_experts) == 1:
        fewer = bool(router.experts) and experts < min(router.experts)  # keys of which experts are products (Doge)
        if fewer or router.biased or router.score not in SCORES:
            return None
        probabilities = _shares(SCORES[router.score](over_experts[0]))
        weights, indices = probabilities.topk(k, dim=1)
        return Decisions(probabilities, indices, _shares(weights), experts)
    for spread, logits in (over_experts, over_experts[::-1]):
        indices = logits.topk(k, dim=1).indices
        if _is_spread(spread, indices) and bool((spread >= 0).all()):
            own = _wide(spread).gather(1, indices)
            return Decisions(_probabilities(logits, indices, own, router), indices, _shares(own), experts)
    return None


def _of_mask(indices: Tensor, floating: list[Tensor], router: Router, experts: int) -> tuple[Tensor, list[Tensor]]:
    """Of a mask ``(n, E)`` with at most one expert per token (Switch): indices, and weights of 0 without one."""
    alone = any(each.shape[1] == 1 for each in floating)
    if not alone or indices.shape[1] != experts or experts < 2 or router.per_token == experts:
        return indices, floating
    count = indices.sum(dim=1, keepdim=True)
    if bool((indices < 0).any()) or bool((count > 1).any()):
        return indices, floating
    kept = [each.masked_fill(count == 0, 0.0) if each.shape[1] == 1 else each for each in floating]
    return indices.argmax(dim=1, keepdim=True), kept


def _are_indices(indices: Tensor, experts: int) -> bool:
    in_order = indices.sort(dim=1).values
    repeated = bool((in_order[:, 1:] == in_order[:, :-1]).any())
    return not (repeated or bool((indices < 0).any()) or bool((indices >= experts).any()))


def _of_indices(indices: Tensor, floating: Sequence[Tensor], router: Router, experts: int) -> Decisions | None:
    """With logits or weights or both; logits come first, and what follows the weights is not of the routed experts."""
    wide = [each for each in floating if each.shape != indices.shape] or floating[: indices.shape[1] == experts]
    logits = wide[0] if wide and wide[0].shape[1] >= experts else None
    own = [each for each in floating if each.shape == indices.shape and each is not logits]
    if own:
        weights = _wide(own[0])
        scores = None if logits is None else _probabilities(logits, indices, weights, router)
        return Decisions(scores, indices, _shares(weights), experts)
    if logits is None or logits.shape[1] != experts:
        return None
    if _is_spread(logits, indices):
        return Decisions(None, indices, _shares(_wide(logits).gather(1, indices)), experts)
    probabilities = _softmax(logits)
    return Decisions(probabilities, indices, _shares(probabilities.gather(1, indices)), experts)


def _is_spread(values: Tensor, indices: Tensor) -> bool:
    """Whether they are 0 for all experts that were not chosen."""
    return indices.shape[1] < values.shape[1] and not bool(values.scatter(1, indices, 0.0).any())


def _probabilities(logits: Tensor, indices: Tensor, weights: Tensor, router: Router) -> Tensor | None:
    """By the score function of which the router's weights are; None if it is none of those known."""
    if _are_shares(logits):
        return _shares(_wide(logits))
    chosen = weights.sum(dim=1) != 0
    single, weights = indices.shape[1] == 1, weights[chosen]
    even = not len(weights) or bool(weights.amax() - weights.amin() <= EVEN * weights.amax())
    if not len(weights) or (single and even):  # a sum of 1 does not show it
        return _shares(SCORES[router.score](logits)) if router.score in SCORES else None
    compared = _of_mean if single else _shares
    scores = [score(logits) for score in SCORES.values()]
    away = torch.stack([(compared(each.gather(1, indices)[chosen]) - compared(weights)).abs().nan_to_num(0.0).amax()
                        for each in scores])  # NaN: an overflow, seen elsewhere  # fmt: skip
    return _shares(scores[int(away.argmin())]) if bool(away.amin() < SAME) else None


def _of_mean(values: Tensor) -> Tensor:
    return values / values.mean()


def _softmax(logits: Tensor) -> Tensor:
    return _shares(_wide(logits)) if _are_shares(logits) else _wide(logits).softmax(dim=1)


SCORES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "softmax": _softmax,
        "sigmoid": lambda logits: _wide(logits).sigmoid(),
        "sqrtsoftplus": lambda logits: softplus(_wide(logits)).sqrt(),
    }
)
"""Score functions by their names in configurations: softmax (Mixtral), sigmoid (DeepSeek-V3), DeepSeek-V4."""


def _are_shares(logits: Tensor) -> bool:
    wide = _wide(logits)
    return bool((wide >= 0).all()) and bool(((wide.sum(dim=1) - 1).abs() < SAME).all())


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.device.type == "mps" else tensor.double()  # MPS has no float64


def _shares(values: Tensor) -> Tensor:
    total = values.sum(dim=1, keepdim=True)
    return values / torch.where(total == 0, 1.0, total)


def _described(given: Sequence[Any]) -> str:
    shapes = [
        f"{each.dtype} {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__ for each in given
    ]
    return ", ".join(shapes) or "nothing"


def _advice(router: Router, path: str) -> str:
    """What to name instead: a module inside that gives logits, if there is one."""
    inside = [name for name, each in router.module.named_modules() if each is not router.module]
    logits = [name for name in inside if getattr(router.module.get_submodule(name), "weight", None) is router.weight]
    named = f"{path}.{logits[0]}" if logits and router.weight is not None else "path"
    return (
        "name modules that give logits (tokens, experts), of which the largest are taken, with the experts per token, "
        f"such as routers={{{named!r}: {router.per_token or 2}}}, or leave the markers of routing out"
    )
