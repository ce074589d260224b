"""State of metrics that need the moments of all points: mergeable, and bounded however many points come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.markers import moments as moment
from geomonitor.metrics.states import FeatureMetric, require_width


class MomentMetric(FeatureMetric):
    """A metric whose state is the moments of the points in each class: at most ``2 N x N`` numbers."""

    counts: list[Tensor]
    means: list[Tensor]
    factors: list[Tensor]
    spreads: list[Tensor]

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        for name in ("counts", "means", "factors", "spreads"):
            self.add_state(name, [], dist_reduce_fx=None)

    def _empty_part(self) -> dict[str, Tensor]:
        part = moment.empty_moments(self.num_classes, torch.zeros(0, 0, device=self.device))
        return {"counts": part.counts, "means": part.means, "factors": part.factor, "spreads": part.spread}

    def _moments(self) -> moment.Moments | None:
        states = zip(self.counts, self.means, self.factors, self.spreads, strict=True)
        parts = [moment.Moments(*part) for part in states]
        parts = [part for part in parts if part.means.shape[1]]
        return moment.merge_moments(parts) if parts else None

    def _add(self, features: Tensor, labels: Tensor) -> None:
        now = self._moments()
        if now is None:
            now = moment.empty_moments(self.num_classes, features)
        require_width(features, now.means.shape[1])
        now = moment.add_points(now, features, labels)
        self.counts, self.means, self.factors, self.spreads = [now.counts], [now.means], [now.factor], [now.spread]

    def _all_moments(self) -> moment.Moments:
        self._require_clean()
        moments = self._moments()
        if moments is None or not bool(moments.counts.sum() > 0):
            raise InputError("no points to compute from: call update(features, labels) first")
        return moments
