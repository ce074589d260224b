"""What all metrics share: the checks of a batch, the value of a batch alone, merging, and list states that sync."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from geomonitor._options import Range
from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.markers.inputs import on_float64_device, require_labels, require_matrix

if TYPE_CHECKING:
    from typing_extensions import Self


_CLASSES = Range(1, 1_000_000, ends="[]", whole=True)


class FeatureMetric(Metric):
    """What all metrics share: the checks of a batch, and list states that sync although ranks differ.

    Every list state is a list of *parts* that can be merged: one after ``update``, one per rank after a sync. Ranks
    always send exactly one part, an empty one if they saw nothing, so that no rank waits for another.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = True
    """``forward`` then updates first and resets afterwards: a batch that is refused leaves the state as it was, and
    points without ids are named by their position in the whole stream"""

    content = "features"
    """what the rows hold, for error messages"""

    names: tuple[str, ...]
    """keys of what ``compute`` returns"""

    rejected_labels: Tensor
    nonfinite_rows: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        num_classes = int(_CLASSES.number("num_classes", num_classes))
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self._batch_alone = False
        self.add_state("rejected_labels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("nonfinite_rows", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def __repr__(self) -> str:
        given = {name: getattr(self, name, None) for name in inspect.signature(type(self)).parameters}
        plain = [f"{name}={value!r}" for name, value in given.items() if isinstance(value, (bool, int, float, str))]
        return f"{type(self).__name__}({', '.join(plain)})"

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

    def _values(self) -> dict[str, Tensor]:
        """The markers of the points in the state."""
        raise NotImplementedError

    def compute(self) -> dict[str, Tensor]:
        """The markers of all points so far, 0-dim float64 by name of the marker.

        Raises:
            InputError: no points, a class without points if classes are needed, labels out of range, NaN or infinite
                features (how many of which class).
        """
        if not self._batch_alone:
            return self._values()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GeomonitorWarning)  # undefined markers of a single batch are expected
            try:
                return self._values()
            except InputError:
                return dict.fromkeys(self.names, torch.tensor(torch.nan, dtype=torch.float64, device=self.device))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Add a batch, as ``update`` does, and return the markers of this batch alone.

        A batch for which ``compute`` would raise an error (a class without points, NaN features) gives NaN for every
        marker; the error comes at ``compute``, if it holds for all points. It costs a ``compute`` a batch: call
        ``update`` if the values of batches are not needed.

        Returns:
            0-dim float64 by name of the marker.

        Raises:
            InputError: as ``update``; the state is then as it was before.
        """
        self._batch_alone = True
        try:
            values: dict[str, Tensor] = super().forward(*args, **kwargs)
        finally:
            self._batch_alone = False
        return values

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the points of another metric of the same class, or of its ``metric_state``, to those of this one.

        Raises:
            InputError: a metric of another class.
        """
        if isinstance(incoming_state, Metric):
            if type(incoming_state) is not type(self):
                raise InputError(f"expected the state of a {type(self).__name__}; got {type(incoming_state).__name__}")
            incoming_state = incoming_state.metric_state
        self._merge(incoming_state)
        self._update_count += 1  # so that compute does not warn that there was no update
        self._computed = None

    def _merge(self, incoming: Mapping[str, Any]) -> None:
        for name, mine in self.metric_state.items():
            other = incoming[name]
            if isinstance(mine, list):
                setattr(self, name, [*mine, *(part.to(self.device) for part in other)])
            else:
                setattr(self, name, mine + other.to(self.device))

    def _synced(self) -> AbstractContextManager[None]:
        """All processes' state inside the block, as in ``compute``."""
        context: AbstractContextManager[None] = self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        )
        return context

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


def require_width(features: Tensor, width: int) -> None:
    """Refuse a batch of another width than the points before it."""
    if features.shape[-1] != width:
        raise InputError(f"features must keep their width; got {features.shape[-1]} units after {width}")
