"""What a measurement takes of the routers of a mixture of experts in its pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from geomonitor._distributed import Processes
from geomonitor.features.routers import Router
from geomonitor.features.routing import LayerRouting
from geomonitor.markers.routing import FEWEST_TOKENS
from geomonitor.markers.routing_layers import MEAN, ROUTING_MARKERS, routing_markers
from geomonitor.measure.points import PointBuffer


class RoutingBuffer:
    """Collects what routers decide, item by item; every process makes the same calls.

    Args:
        markers: names of what is measured.
        processes: that measure together.
        warn: takes a warning and a key of its cause.
    """

    def __init__(self, markers: Collection[str], processes: Processes, warn: Callable[[str, str], None]) -> None:
        self.weights: dict[str, Tensor | None] = {}
        """``(E, H)`` of each router, by path"""
        self.by_layer: dict[str, dict[str, tuple[float, float]]] = {}
        """marker and standard error, by path of the router and name, after :meth:`compute`"""
        self._markers = [name for name in ROUTING_MARKERS if name in markers]
        self._warn = warn
        self._items = PointBuffer(torch.device("cpu"), processes)

    def take_weights(self, routers: Mapping[str, Router]) -> None:
        """Keep the weights of routers; those spread over processes (FSDP2) are gathered, so all have to call this."""
        self.weights = {path: _gathered(router.weight) for path, router in routers.items()}

    def update(self, routing: Mapping[str, LayerRouting], items: Tensor) -> None:
        """Add a batch.

        Args:
            routing: of the items of a batch, by path of the router.
            items: ``(B,)`` numbers of the items; an item that comes twice counts once. If there are none, the batch was
                borrowed to keep processes in lockstep.
        """
        rows = {path: layer.rows() for path, layer in routing.items()}
        self._items.add(rows, classes=torch.zeros_like(items), ids=items)

    def compute(self) -> dict[str, tuple[float, float]]:
        """Means over the layers, marker and standard error by name; those of each layer are in ``by_layer``."""
        gathered = self._items.gather().rows
        kept = torch.stack([_finite(rows) for rows in gathered.values()]).all(dim=0)
        if not bool(kept.all()):
            self._warn(
                f"routers gave NaN or infinite weights for {int((~kept).sum())} of {len(kept)} items, which are left "
                "out of the markers of routing. Look for an overflow (half precision?).",
                "nonfinite routing",
            )
        undefined = dict.fromkeys(self._markers, (math.nan, math.nan))
        self.by_layer = {path: dict(undefined) for path in gathered}
        if not bool(kept.any()):
            return undefined
        layers = {path: LayerRouting.of_rows(rows[kept]) for path, rows in gathered.items()}
        found = {
            path: {name: (float(of_layer[name].value), float(of_layer[name].standard_error)) for name in self._markers}
            for path, of_layer in routing_markers(layers, self.weights).items()
        }
        means = found.pop(MEAN)
        self.by_layer = found
        for name, (value, _) in means.items():
            if math.isnan(value):
                self._warn(f"{name} is NaN: {_reason(name, layers)}.", f"{name} is undefined")
        return means


def _reason(name: str, layers: Mapping[str, LayerRouting]) -> str:
    """Why a marker of routing is undefined, and what to do."""
    if name == "dead_experts":
        needed = max(FEWEST_TOKENS * len(each.assignments[0]) for each in layers.values())
        had = min(int(each.assignments.sum()) for each in layers.values())
        return (
            f"the probe set makes {had} assignments of tokens to experts in a layer, and {needed} are needed "
            f"({FEWEST_TOKENS} an expert), or an expert may be missing by chance; take more or longer items"
        )
    if name == "router_entropy":
        return (
            "a router shows no logits of which its weights are the softmax, the sigmoid or another known score, so its "
            "probabilities are not known; leave the marker out, or name modules that give logits, routers={'path': 2}"
        )
    if name == "pathway_consistency":
        return "it needs two layers or more whose routers have weights (experts, width) of one width, and not 0"
    return "it needs two items or more, and two experts or more"


def _finite(rows: Tensor) -> Tensor:
    return LayerRouting.of_rows(rows).weights.isfinite().all(dim=1)


def _gathered(weight: Tensor | None) -> Tensor | None:
    with torch.no_grad():
        if weight is None:
            return None
        whole: Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight.detach()
        return whole
