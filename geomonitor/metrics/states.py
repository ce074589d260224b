"""The states of metrics: moments of all points, or some chosen points of each class. What they share when they sync."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from geomonitor.errors import InputError
from geomonitor.markers import moments as moment
from geomonitor.markers.inputs import on_float64_device, require_labels, require_matrix
from geomonitor.probe import reservoir
from geomonitor.probe.reservoir import Reservoir

if TYPE_CHECKING:
    from typing_extensions import Self


class FeatureMetric(Metric):
    """What all metrics share: the checks of a batch, and list states that sync although ranks differ.

    Every list state is a list of *parts* that can be merged: one after ``update``, one per rank after a sync. Ranks
    always send exactly one part, an empty one if they saw nothing, so that no rank waits for another.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    content = "features"
    """what the rows hold, for error messages"""

    rejected_labels: Tensor
    nonfinite_rows: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise InputError(f"num_classes must be positive; got {num_classes}")
        self.num_classes = num_classes
        self.add_state("rejected_labels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("nonfinite_rows", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def _checked(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch with unusable points moved to class ``num_classes``, which every state ignores.

        They are counted on the device and reported by ``compute``: asking here would wait for the device.
        """
        require_matrix(features)
        require_labels(labels, len(features))
        features = on_float64_device(features.detach())
        if features.dtype in (torch.float16, torch.bfloat16) or not features.is_floating_point():
            features = features.float()  # exact, and every backend can send it
        labels = labels.to(features.device)
        known = (labels >= 0) & (labels < self.num_classes)
        finite = torch.isfinite(features).all(dim=1)
        self.rejected_labels = self.rejected_labels + (~known).sum()
        counts = torch.zeros(self.num_classes + 1, dtype=torch.int64, device=labels.device)
        counts = counts.index_add(0, torch.where(known, labels, self.num_classes), (~finite).to(torch.int64))
        self.nonfinite_rows = self.nonfinite_rows + counts[:-1]
        usable = (known & finite)[:, None]
        return torch.where(usable, features, 0.0), torch.where(usable[:, 0], labels, self.num_classes)

    def _require_clean(self) -> None:
        if int(self.rejected_labels):
            raise InputError(
                f"labels must be integers in 0 .. {self.num_classes - 1}; {int(self.rejected_labels)} were not. "
                "Raise num_classes or map the labels."
            )
        if bool(self.nonfinite_rows.any()):
            where = {c: n for c, n in enumerate(self.nonfinite_rows.tolist()) if n}
            raise InputError(
                f"{self.content} must be finite; rows with NaN or infinite values, class: rows = {where}. "
                "Look for an overflow in the layer (half precision?), or drop these rows."
            )

    def _empty_part(self) -> dict[str, Tensor]:
        """One part without points, to be sent by a rank that saw none."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Add points, exactly as ``update`` does; the geometry of a single batch means nothing, so none is returned."""
        self.update(*args, **kwargs)
        return {}

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        """Follow the module to another device but never to another dtype: ``bf16-true`` training converts modules."""

        def moved(tensor: Tensor) -> Tensor:
            device = fn(tensor.new_empty(0, dtype=torch.float32)).device
            return tensor if device.type == "mps" else tensor.to(device)  # MPS has no float64

        return super()._apply(moved, exclude_state)  # type: ignore[return-value]

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[[], bool] | None = None,
    ) -> None:
        """Gather the parts of all ranks; see ``torchmetrics.Metric.sync``."""
        available = distributed_available or self.distributed_available_fn
        if should_sync and not self._is_synced and callable(available) and available():
            for name, part in self._empty_part().items():
                if not getattr(self, name):
                    setattr(self, name, [part])
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the markers: of one result a row each, of several the change of each since the first.

        Args:
            val: a result of ``compute`` or a list of them (one a step); by default ``compute()``.
            ax: a matplotlib axis to draw on; by default a new figure.

        Returns:
            matplotlib figure and axis.

        Raises:
            ImportError: matplotlib is missing.
        """
        from geomonitor.plots.drawing import plot_values

        return plot_values(self.compute() if val is None else val, ax)


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
        _require_width(features, now.means.shape[1])
        now = moment.add_points(now, features, labels)
        self.counts, self.means, self.factors, self.spreads = [now.counts], [now.means], [now.factor], [now.spread]

    def _all_moments(self) -> moment.Moments:
        self._require_clean()
        moments = self._moments()
        if moments is None or not bool(moments.counts.sum() > 0):
            raise InputError("no points to compute from: call update(features, labels) first")
        return moments


class PointMetric(FeatureMetric):
    """A metric whose state is at most ``per_class`` points of each class, chosen by ``seed`` and sample id.

    The same points in any batch split, in any order, on any number of processes.
    """

    features: list[Tensor]
    priorities: list[Tensor]
    seen: Tensor

    def __init__(self, num_classes: int, *, per_class: int, seed: int, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        if per_class < 1:
            raise InputError(f"per_class must be positive; got {per_class}")
        self.per_class = per_class
        self.seed = seed
        self.add_state("features", [], dist_reduce_fx=None)
        self.add_state("priorities", [], dist_reduce_fx=None)
        self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, features: Tensor, labels: Tensor, ids: Tensor | None = None) -> None:
        """Add points.

        Args:
            features: ``(B, N)``, any real dtype.
            labels: ``(B,)`` integers in ``0 .. num_classes - 1``.
            ids: ``(B,)`` integers that name each sample, the same at every epoch; a sample that comes twice counts
                once. By default the position in the stream; with several processes, the position in a stream dealt out
                one sample a rank, as ``DistributedSampler(shuffle=False)`` does.

        Raises:
            InputError: wrong shape or dtype, or another width than before.
        """
        features, labels = self._checked(features, labels)
        features = features.to(torch.float64)  # a rank without points cannot know another dtype, and has to send it
        if ids is None:
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
        _require_width(features, now.features.shape[2])
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
        parts = [Reservoir(*part) for part in zip(self.features, self.priorities, strict=True)]
        parts = [part for part in parts if part.features.shape[2]]
        return reservoir.merge_reservoirs(parts) if parts else None


def _require_width(features: Tensor, width: int) -> None:
    if features.shape[1] != width:
        raise InputError(f"features must keep their width; got {features.shape[1]} units after {width}")
