"""State of metrics that need points: some of each class, the same ones in any order and on any number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.markers.inputs import require_labels
from geomonitor.metrics.states import FeatureMetric, require_width
from geomonitor.probe import reservoir
from geomonitor.probe.choice import SEED
from geomonitor.probe.reservoir import Reservoir


class PointMetric(FeatureMetric):
    """A metric whose state is at most ``per_class`` points of each class, chosen by ``seed`` and id.

    The same points in any batch split, in any order, on any number of processes. Points with ids count once, also when
    states are merged; without ids every point of two merged states counts, since each has numbered its own from 0.
    """

    features: list[Tensor]
    priorities: list[Tensor]
    seen: Tensor
    unnamed: Tensor

    def __init__(self, num_classes: int, *, per_class: int, seed: int, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.per_class = _options.whole("per_class", per_class)
        self.seed = int(SEED.number("seed", seed))
        self.add_state("features", [], dist_reduce_fx=None)
        self.add_state("priorities", [], dist_reduce_fx=None)
        self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("unnamed", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, features: Tensor, labels: Tensor, ids: Tensor | None = None) -> None:
        """Add points.

        Args:
            features: ``(B, N)``, any real dtype.
            labels: ``(B,)`` integers in ``0 .. num_classes - 1``.
            ids: ``(B,)`` integers that name each point, the same at every epoch; a point that comes twice counts once.
                By default the position in the stream; with several processes, the position in a stream dealt out one
                point a rank, as ``DistributedSampler(shuffle=False)`` does.

        Raises:
            InputError: wrong shape or dtype, or another width than before.
        """
        features, labels = self._checked(features, labels)
        features = features.to(torch.float64)  # a rank without points cannot know another dtype, and has to send it
        if ids is None:
            self.unnamed = self.unnamed + len(features)
            ids = self.seen + torch.arange(len(features), device=features.device)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                ids = ids * torch.distributed.get_world_size() + torch.distributed.get_rank()
        else:
            require_labels(ids, len(features))
            ids = ids.to(features.device)
        self.seen = self.seen + len(features)
        now = self._reservoir()
        if now is None:
            now = reservoir.empty_reservoir(self.num_classes, self.per_class, features)
        require_width(features, now.features.shape[2])
        now = reservoir.add_points(now, features, labels, reservoir.priority(ids, self.seed))
        self.features, self.priorities = [now.features], [now.priorities]

    def _points(self) -> tuple[Tensor, Tensor]:
        """The points held, ``(Q, N)``, and their classes, in an order that depends on their ids alone."""
        self._require_clean()
        points = self._reservoir()
        if points is None or not bool((points.priorities != reservoir.EMPTY).any()):
            raise InputError("no points to compute from: call update(features, labels) first")
        return reservoir.points_and_labels(points)

    def _empty_part(self) -> dict[str, Tensor]:
        width_zero = torch.zeros(0, 0, dtype=torch.float64, device=self.device)
        part = reservoir.empty_reservoir(self.num_classes, self.per_class, width_zero)
        return {"features": part.features, "priorities": part.priorities}

    def _reservoir(self) -> Reservoir | None:
        return _merged_reservoir(self.features, self.priorities)

    def _merge(self, incoming: Mapping[str, Any]) -> None:
        other = _merged_reservoir(*([part.to(self.device) for part in incoming[n]] for n in ("features", "priorities")))
        mine = self._reservoir()
        super()._merge(incoming)
        if mine is not None and other is not None and bool(self.unnamed > 0):
            kept = _all_kept(mine, other)
            self.features, self.priorities = [kept.features], [kept.priorities]


def _merged_reservoir(features: list[Tensor], priorities: list[Tensor]) -> Reservoir | None:
    parts = [Reservoir(*part) for part in zip(features, priorities, strict=True)]
    parts = [part for part in parts if part.features.shape[2]]
    return reservoir.merge_reservoirs(parts) if parts else None


def _all_kept(one: Reservoir, other: Reservoir) -> Reservoir:
    """The reservoir of all points, those of equal priority included: each is moved up to the next free priority."""
    require_width(other.features, one.features.shape[2])
    priorities, order = torch.cat([one.priorities, other.priorities], dim=1).sort(dim=1, stable=True)
    places = torch.arange(priorities.shape[1], device=priorities.device)
    distinct = (priorities - places).cummax(dim=1).values + places
    distinct = torch.where(priorities == reservoir.EMPTY, reservoir.EMPTY, distinct)
    kept = order[:, : one.priorities.shape[1]]
    features = torch.cat([one.features, other.features], dim=1)
    return Reservoir(torch.take_along_dim(features, kept[:, :, None], dim=1), distinct[:, : kept.shape[1]])
