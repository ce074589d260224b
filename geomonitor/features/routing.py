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
from geomonitor.features.decisions import Decisions, decisions
from geomonitor.features.hooks_run import hooks_run
from geomonitor.features.layers import listed
from geomonitor.features.pooling import check_pooling
from geomonitor.features.routers import Router, RouterNames, find_routers


class LayerRouting(NamedTuple):
    """How one router treated the tokens of ``B`` items, padding left out; float64."""

    assignments: Tensor
    """``(B, E)``: tokens of an item that an expert got"""
    weights: Tensor
    """``(B, E)``: mean over the tokens of an item of the weight of each expert, which sum to 1, or to less where tokens
    got no expert"""
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


@contextmanager
def captured_routing(
    model: nn.Module, routers: RouterNames = None, *, mask: Tensor | None = None, items: int | None = None
) -> Iterator[dict[str, LayerRouting]]:
    """Record what the routers of a mixture of experts decide during one forward pass; no hook is left after the block.

    A router gives logits ``(..., E)``, or a tuple with the indices of the chosen experts ``(..., k)`` and perhaps
    logits and weights, as in transformers 5. Its own indices are taken: they need not be the largest logits. Weights
    are brought to a sum of 1 for each token; a token of which all weights are 0, or that a router of one expert per
    token drops for lack of capacity, counts as a token without expert. Of logits alone, as in transformers 4, the ``k``
    largest are taken, with the score function that the configuration names, or the softmax; none if a bias takes part
    in the choice. Probabilities are the softmax of the logits, or their sigmoid or
    square root of softplus over its sum: the one of which the router's weights are; logits that are not negative and of
    sum 1 are probabilities already. If the only weight of a token is always the same, it is the one that the
    configuration names, or the sigmoid for a router with a bias for the choice, or the softmax.

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
            f"the routers that run, routers={list(routing) or ['path', '...']}"
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
    if probabilities is not None and probabilities.shape[1] > 1:
        entropies = torch.special.entr(probabilities).sum(dim=1, keepdim=True) / math.log(probabilities.shape[1])
    some = (weights.sum(dim=1, keepdim=True) != 0).to(weights.dtype).expand_as(weights)
    return LayerRouting(
        summed(wide.scatter(1, indices, some)),
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
                "routers that see the tokens of the mask, routers=['path', ...], or leave the markers of routing out"
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
