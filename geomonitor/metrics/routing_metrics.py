"""Metric of the routers of a mixture of experts: counts of all items, and pathways of some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.features.routing import LayerRouting
from geomonitor.markers.estimate import Estimate
from geomonitor.markers.inputs import given_matrix
from geomonitor.markers.routing_layers import MEAN, ROUTING_MARKERS, routing_markers
from geomonitor.metrics.point_state import PointMetric

_PATHWAYS = ("pathway_distance", "pathway_consistency")

_AT_MOST = _options.Range(1, 2**16, ends="[]", whole=True)


class RoutingStatistics(PointMetric):
    """Load, entropy and pathways of the routers of a mixture of experts, means over their layers.

    State: counts and entropies of every item, summed over processes, so an item that comes twice counts twice; and the
    mean weights ``(L, E)`` of at most ``items`` items, chosen by ``seed`` and id as in ``ManifoldGeometry``, for the
    pathways and their standard errors.

    Args:
        layers: ``L``, layers with experts.
        experts: ``E``, the same in each.
        items: kept for the pathways.
        seed: which items.
        weights: ``(E, H)`` of each router, in the order of the layers; without them ``pathway_consistency`` is NaN.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    >>> metric = RoutingStatistics(layers=1, experts=4)
    >>> from geomonitor import captured_routing
    >>> with captured_routing(model, {"0": 1}, items=8) as routing:
    ...     _ = model(torch.randn(800, 4))
    >>> metric.update(routing)
    >>> metric.compute()["dead_experts"].item()
    0.0
    """

    content = "routing weights"
    names = (*ROUTING_MARKERS, *(f"{name}_standard_error" for name in _PATHWAYS))

    assignments: Tensor
    entropies: Tensor
    tokens: Tensor

    def __init__(
        self,
        layers: int,
        experts: int,
        *,
        items: int = 500,
        seed: int = 0,
        weights: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        self.layers, self.experts = (
            int(_AT_MOST.number(name, value)) for name, value in (("layers", layers), ("experts", experts))
        )
        super().__init__(1, per_class=_options.whole("items", items), seed=seed, **kwargs)
        self.items = self.per_class
        if weights is not None and not isinstance(weights, (list, tuple)):
            raise InputError(f"weights must be a list of tensors, one for each router; got {type(weights).__name__}")
        given = [given_matrix("weights", weight) for weight in weights or ()]
        if weights is not None and [None if w is None else len(w) for w in given] != [self.experts] * self.layers:
            raise InputError(f"weights must be {self.layers} tensors ({self.experts}, H), one for each router")
        self.weights = given or [None] * self.layers
        zeros = torch.zeros(self.layers, dtype=torch.float64)
        self.add_state("assignments", zeros[:, None].repeat(1, self.experts), dist_reduce_fx="sum")
        self.add_state("entropies", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("tokens", zeros.clone(), dist_reduce_fx="sum")

    def update(self, routing: Mapping[str, LayerRouting], ids: Tensor | None = None) -> None:  # type: ignore[override]
        """Add items.

        Args:
            routing: of a batch, as :func:`geomonitor.captured_routing` gives it.
            ids: ``(B,)`` integers that name each item, as in ``ManifoldGeometry``.

        Raises:
            InputError: another number of layers or experts.
        """
        routing = _options.instance("routing", routing, Mapping, "what captured_routing gave")
        layers = [_options.instance("routing", each, LayerRouting, "LayerRouting by path") for each in routing.values()]
        if len(layers) != self.layers or any(each.weights.shape[1] != self.experts for each in layers):
            found = {path: each.weights.shape[1] for path, each in routing.items()}
            raise InputError(f"routing must be of {self.layers} layers of {self.experts} experts; got {found}")
        rows = torch.cat([each.weights for each in layers], dim=1).to(self.device)
        super().update(rows, torch.zeros(len(rows), dtype=torch.int64), ids)
        sums = [(each.assignments.sum(dim=0), each.entropies.sum(), each.tokens.sum()) for each in layers]
        assignments, entropies, tokens = (torch.stack(column).to(self.device) for column in zip(*sums, strict=True))
        self.assignments = self.assignments + assignments
        self.entropies, self.tokens = self.entropies + entropies, self.tokens + tokens

    def by_layer(self) -> list[dict[str, Tensor]]:
        """The markers of each layer, as :meth:`compute` gives their mean; every process has to call this.

        Raises:
            InputError: as :meth:`compute`.
        """
        with self._synced():
            found = self._found()
        return [self._named(found[str(layer)]) for layer in range(self.layers)]

    def _values(self) -> dict[str, Tensor]:
        return self._named(self._found()[MEAN])

    def _named(self, found: Mapping[str, Estimate]) -> dict[str, Tensor]:
        errors = {f"{name}_standard_error": found[name].standard_error for name in _PATHWAYS}
        return {name: found[name].value for name in ROUTING_MARKERS} | errors

    def _found(self) -> dict[str, dict[str, Estimate]]:
        kept, _ = self._points()
        names = [str(layer) for layer in range(self.layers)]
        weights = dict(zip(names, self.weights, strict=True))
        parts = dict(zip(names, torch.split(kept, self.experts, dim=1), strict=True))
        sums = {
            name: LayerRouting(
                self.assignments[i][None], parts[name], self.entropies[i : i + 1], self.tokens[i : i + 1]
            )
            for i, name in enumerate(names)
        }
        return routing_markers(sums, weights)
