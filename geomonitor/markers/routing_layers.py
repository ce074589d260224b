"""All markers of routing, layer by layer, and their means over the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from geomonitor.features.routing import LayerRouting
from geomonitor.markers.estimate import Estimate
from geomonitor.markers.pathways import consistency_of, distance_of
from geomonitor.markers.routing import LeftOut, dead_experts_of, load_entropy_of, ratio_of

MEAN = ""
"""In the place of the path of a layer: the mean over the layers."""
CONSISTENCY = "pathway_consistency"
ROUTING_FORMULAS: MappingProxyType[str, Callable[[LayerRouting], LeftOut]] = MappingProxyType(
    {
        "router_load_entropy": lambda layer: load_entropy_of(layer.assignments),
        "dead_experts": lambda layer: dead_experts_of(layer.assignments),
        "router_entropy": lambda layer: ratio_of(layer.entropies, layer.tokens),
        "pathway_distance": lambda layer: distance_of(layer.weights, _per_token(layer)),
    }
)
"""Functions of what one router decided, by name of the marker."""
ROUTING_MARKERS = (*ROUTING_FORMULAS, CONSISTENCY)
"""Names of all markers of routing."""


def routing_markers(
    layers: Mapping[str, LayerRouting], rows: Mapping[str, Tensor | None]
) -> dict[str, dict[str, Estimate]]:
    """All markers of this file, by layer and name, and their means over the layers under ``""``.

    ``pathway_consistency`` of a layer compares it and the next one, so the last layer has none, and the mean is over
    the others. The mean of the others is over all layers, and NaN if one of them is.

    Args:
        layers: what each router decided, of the same items each, in the order of the network.
        rows: weights ``(E, H)`` of the routers; None if not known.

    >>> one = LayerRouting(torch.full((2, 2), 20.0), torch.full((2, 2), 0.5), torch.zeros(2), torch.full((2,), 40.0))
    >>> found = routing_markers({"a": one, "b": one}, {"a": torch.eye(2), "b": torch.eye(2)})
    >>> found[""]["pathway_distance"].value.item(), round(found["a"]["pathway_consistency"].value.item(), 6)
    (0.0, 1.0)
    """
    found = {
        path: {name: formula(layer) for name, formula in ROUTING_FORMULAS.items()} for path, layer in layers.items()
    }
    chosen = {path: _chosen(layer, rows.get(path)) for path, layer in layers.items()}
    paths = list(layers)
    for path, after in zip(paths, [*paths[1:], None], strict=True):
        one, other = chosen[path], None if after is None else chosen[after]
        if one is None or other is None or one.shape != other.shape:
            found[path][CONSISTENCY] = _undefined(layers[path].tokens)
        else:
            found[path][CONSISTENCY] = consistency_of(one, other)
    means = {}
    for name in ROUTING_MARKERS:
        counted = paths if name != CONSISTENCY or len(paths) < 2 else paths[:-1]
        each = [found[path][name] for path in counted]
        means[name] = LeftOut(
            torch.stack([one.value for one in each]).mean(), torch.stack([one.left_out for one in each]).mean(dim=0)
        )
    whole = {MEAN: means, **found}
    return {path: {name: one.estimate for name, one in of_layer.items()} for path, of_layer in whole.items()}


def _chosen(layer: LayerRouting, rows: Tensor | None) -> Tensor | None:
    """``u``, each of length one or 0."""
    if rows is None:
        return None
    weight = rows.to(device=layer.weights.device, dtype=layer.weights.dtype)
    chosen = layer.weights @ weight
    largest = chosen.abs().amax(dim=1, keepdim=True)
    return chosen / torch.where(largest > 0, largest, 1.0)


def _undefined(of_items: Tensor) -> LeftOut:
    return LeftOut(of_items.new_tensor(math.nan), torch.full_like(of_items, math.nan))


def _per_token(layer: LayerRouting) -> int:
    """Experts of a token, which is a mean if their number varies."""
    return max(1, round(float(layer.assignments.sum() / layer.tokens.sum())))
