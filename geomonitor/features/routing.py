"""What the routers of a mixture of experts decide, from forward hooks that live as long as a ``with`` block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomonitor import _options
from geomonitor.errors import MeasurementError
from geomonitor.features.hooks_run import hooks_run
from geomonitor.features.layers import listed
from geomonitor.features.pooling import check_pooling
from geomonitor.features.routers import Router, RouterNames, find_routers

SAME = 0.01
"""Largest difference of a router's own weights to those of a score function that is taken for its own: above the
rounding of bfloat16."""


class LayerRouting(NamedTuple):
    """How one router treated the tokens of ``B`` items, padding left out; float64."""

    assignments: Tensor
    """``(B, E)``: tokens of an item that an expert got"""
    weights: Tensor
    """``(B, E)``: mean over the tokens of an item of the weight of each expert, which sum to 1"""
    entropies: Tensor
    """``(B,)``: sum over the tokens of an item of the entropy of the router's probabilities, over ``ln E``; NaN if the
    probabilities are not known"""
    tokens: Tensor
    """``(B,)``"""

    @classmethod
    def of_rows(cls, rows: Tensor) -> LayerRouting:
        """From what :meth:`rows` gave."""
        experts = rows.shape[1] // 2 - 1
        return cls(rows[:, :experts], rows[:, experts : 2 * experts], rows[:, -2], rows[:, -1])

    def rows(self) -> Tensor:
        """``(B, 2 E + 2)``: all fields side by side."""
        return torch.cat([self.assignments, self.weights, self.entropies[:, None], self.tokens[:, None]], dim=1)


class Decisions(NamedTuple):
    """Of a router, for ``n`` tokens."""

    probabilities: Tensor | None
    """``(n, E)``, rows of sum 1"""
    indices: Tensor
    """``(n, k)`` int64, the experts of a token"""
    weights: Tensor
    """``(n, k)``, rows of sum 1"""
    experts: int


@contextmanager
def captured_routing(
    model: nn.Module, routers: RouterNames = None, *, mask: Tensor | None = None, items: int | None = None
) -> Iterator[dict[str, LayerRouting]]:
    """Record what the routers of a mixture of experts decide during one forward pass; no hook is left after the block.

    A router gives logits ``(..., E)``, or a tuple with the indices of the chosen experts ``(..., k)`` and perhaps
    logits and weights, as in transformers 5. Its own indices are taken: they need not be the largest logits. Weights
    are brought to a sum of 1 for each token. Of logits alone, as in transformers 4, the ``k`` largest of their softmax
    are taken. Probabilities are the softmax of the logits, or their sigmoid over its sum: the one of which the router's
    weights are; logits that are not negative and of sum 1 are probabilities already.

    Args:
        model: the model, wrapped or not; call it inside the block, once.
        routers: paths, or a mapping from path to experts per token; by default found, see
            :func:`geomonitor.features.routers.find_routers`.
        mask: ``(B, L)``, nonzero at tokens and 0 at padding, like ``attention_mask``.
        items: ``B``, without a mask: rows of a router are dealt out to items in order, each the same number.

    Yields:
        :class:`LayerRouting` by path of the router, filled in as they run.

    Raises:
        InputError: no router; a mask that is not ``(B, L)`` or has an empty row.
        MeasurementError: on leaving the block: a router that did not run, or several times with other decisions; what
            it gave is no routing, or does not fit the mask.

    >>> model = nn.Sequential(nn.Linear(4, 3, bias=False))
    >>> with captured_routing(model, {"0": 1}, items=2) as routing:
    ...     _ = model(torch.eye(4))
    >>> routing["0"].tokens, routing["0"].assignments.sum(dim=1)
    (tensor([2., 2.], dtype=torch.float64), tensor([2., 2.], dtype=torch.float64))
    """
    found = find_routers(model, routers)
    check_pooling("auto", mask)
    items = _options.whole_or_none("items", items)
    routing: dict[str, LayerRouting] = {}
    failures: list[Exception] = []
    with ExitStack() as stack:
        for path, router in found.items():
            hook = _hook(path, router, mask, items, routing=routing, failures=failures)
            stack.callback(router.module.register_forward_hook(hook).remove)
        stack.enter_context(hooks_run())
        yield routing
    if failures:
        raise failures[0]
    if silent := [path for path in found if path not in routing]:
        raise MeasurementError(
            f"no forward pass reached the routers {listed(silent)} inside the block: call the model there, and name "
            "the routers that run, routers=['path', ...]"
        )


def _hook(
    path: str,
    router: Router,
    mask: Tensor | None,
    items: int | None,
    *,
    routing: dict[str, LayerRouting],
    failures: list[Exception],
) -> Any:
    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        try:
            with torch.no_grad():
                decided = decisions(output, router, path)
                found = by_item(decided, _shape(path, output, len(decided.indices), mask, items), mask)
            earlier = routing.get(path)
            if earlier is not None and not _equal(earlier, found):
                raise MeasurementError(
                    f"router {path!r} ran several times in one forward pass and decided otherwise each time: give "
                    "forward= a function that calls the model once, on the whole batch, or name other routers"
                )
            routing[path] = found
        except Exception as error:  # noqa: BLE001 - raised after the forward pass
            failures.append(error)

    return after


def _equal(one: LayerRouting, other: LayerRouting) -> bool:
    first, second = one.rows(), other.rows()
    return first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)


def decisions(output: Any, router: Router, path: str) -> Decisions:
    """Read what a router gave; see :func:`captured_routing`.

    Raises:
        MeasurementError: it is no routing.
    """
    given = output if isinstance(output, (tuple, list)) else (output,)
    tensors = [each.detach().flatten(0, -2) for each in given if isinstance(each, Tensor) and each.ndim > 1]
    indices = next((each.long() for each in tensors if not each.is_floating_point()), None)
    tokens = len(tensors[0] if indices is None else indices) if tensors else 0
    floating = [each for each in tensors if each.is_floating_point() and len(each) == tokens]
    experts = _experts(router, floating, indices)
    over_experts = [each for each in floating if each.shape[1] == experts]
    if indices is None:
        if len(over_experts) != 1 or router.per_token is None or router.per_token > experts:
            raise MeasurementError(
                f"router {path!r} gave {_described(given)}, from which the chosen experts are not clear: name modules "
                "that give logits (tokens, experts) or indices of experts, with the experts per token, such as "
                f"routers={{{path!r}: 2}}"
            )
        probabilities = _softmax(over_experts[0])
        weights, indices = probabilities.topk(router.per_token, dim=1)
        return Decisions(probabilities, indices, _shares(weights), experts)
    sorted_indices = indices.sort(dim=1).values
    repeated = bool((sorted_indices[:, 1:] == sorted_indices[:, :-1]).any())
    if repeated or bool((indices < 0).any()) or bool((indices >= experts).any()):
        raise MeasurementError(
            f"router {path!r} gave {_described(given)}, and the whole numbers are no indices of distinct experts below "
            f"{experts}: name modules that give logits (tokens, experts), with the experts per token"
        )
    logits = over_experts[0] if over_experts else None
    own = [each for each in floating if each.shape == indices.shape and each is not logits]
    if own:
        weights = _shares(_wide(own[-1]))
        scores = None if logits is None else _scores(logits, indices, weights, router)
        return Decisions(scores, indices, weights, experts)
    if logits is None:
        raise MeasurementError(f"router {path!r} gave {_described(given)}: indices without weights or logits")
    if indices.shape[1] < experts and not bool(logits.scatter(1, indices, 0.0).any()):  # weights, 0 for other experts
        return Decisions(None, indices, _shares(_wide(logits).gather(1, indices)), experts)
    probabilities = _softmax(logits)
    return Decisions(probabilities, indices, _shares(probabilities.gather(1, indices)), experts)


def by_item(decided: Decisions, shape: tuple[int, int], mask: Tensor | None) -> LayerRouting:
    """Sums and means over the tokens of each item.

    Args:
        decided: ``n`` tokens, item after item.
        shape: items and tokens of each, padding included.
        mask: ``shape``; nonzero at tokens.
    """
    probabilities, indices, weights, experts = decided
    wide = weights.new_zeros(len(indices), experts)  # sums over dimensions, since index_add has no fixed order on a GPU
    kept = torch.ones(shape, device=weights.device) if mask is None else mask.to(weights.device) != 0
    kept = kept.to(weights.dtype)[:, :, None]

    def summed(rows: Tensor) -> Tensor:
        rows = rows.view(*shape, -1)
        return torch.where(kept > 0, rows, 0.0).sum(dim=1).double().cpu()

    tokens = kept.sum(dim=(1, 2)).double().cpu()
    entropies = torch.full_like(weights[:, :1], math.nan)
    if probabilities is not None and experts > 1:
        entropies = torch.special.entr(probabilities).sum(dim=1, keepdim=True) / math.log(experts)
    return LayerRouting(
        summed(wide.scatter(1, indices, 1.0)),
        summed(wide.scatter(1, indices, weights)) / tokens[:, None],
        summed(entropies)[:, 0],
        tokens,
    )


def _shape(path: str, output: Any, tokens: int, mask: Tensor | None, items: int | None) -> tuple[int, int]:
    """Items and tokens of each, of a router's output."""
    if mask is not None:
        if tokens != mask.numel():
            raise MeasurementError(
                f"router {path!r} ran on {tokens} tokens, and the attention mask has {tuple(mask.shape)}: name the "
                "routers that see the tokens of the mask, routers=['path', ...]"
            )
        return int(mask.shape[0]), int(mask.shape[1])
    if items is None and isinstance(output, Tensor) and output.ndim > 2:
        items = len(output)
    if items is None or tokens % items:
        raise MeasurementError(
            f"router {path!r} ran on {tokens} tokens of {items or 'an unknown number of'} items: give an attention "
            "mask (B, L), or the number of items, of which all have as many tokens"
        )
    return items, tokens // items


def _experts(router: Router, floating: list[Tensor], indices: Tensor | None) -> int:
    if router.weight is not None:
        return len(router.weight)
    least = 0 if indices is None else indices.shape[1]
    return max((each.shape[1] for each in floating), default=least)


def _scores(logits: Tensor, indices: Tensor, weights: Tensor, router: Router) -> Tensor | None:
    """Probabilities by the score function of which the router's weights are; None if it is neither."""
    softmax, sigmoid = _softmax(logits), _wide(logits).sigmoid()
    if indices.shape[1] == 1:  # a weight of 1 does not show it
        return _shares(sigmoid) if hasattr(router.module, "e_score_correction_bias") else softmax
    gathered = [_shares(each.gather(1, indices)) for each in (softmax, sigmoid)]
    away = [(each - weights).abs().nan_to_num(0.0).amax() for each in gathered]  # NaN: an overflow, seen elsewhere
    if not bool(torch.stack(away).amin() < SAME):
        return None
    return softmax if away[0] <= away[1] else _shares(sigmoid)


def _softmax(logits: Tensor) -> Tensor:
    wide = _wide(logits)
    if bool((wide >= 0).all()) and bool(((wide.sum(dim=1) - 1).abs() < SAME).all()):
        return _shares(wide)
    return wide.softmax(dim=1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.device.type == "mps" else tensor.double()  # MPS has no float64


def _shares(values: Tensor) -> Tensor:
    return values / values.sum(dim=1, keepdim=True)


def _described(given: Any) -> str:
    shapes = [
        f"{each.dtype} {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__ for each in given
    ]
    return ", ".join(shapes) or "nothing"
