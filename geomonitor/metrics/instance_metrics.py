"""Metric of instances: views of each item are its points, and the item's number is its label."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from geomonitor.markers.instances import VIEW_FORMULAS
from geomonitor.metrics.point_state import PointMetric


class InstanceStructure(PointMetric):
    """LiDAR, signal to noise, and alignment of instances, with standard errors.

    State: at most ``per_class`` views of each instance, chosen by ``seed`` and id as in ``ManifoldGeometry``,
    which takes the same updates for the geometry of instances (``mode="pairwise", pairs=60``).

    Args:
        num_classes: instances; labels are integers in ``0 .. num_classes - 1``.
        per_class: views kept of each instance.
        seed: which views.

    >>> import torch
    >>> metric = InstanceStructure(num_classes=2)
    >>> metric.update(torch.tensor([[0.0, 1.0], [2.0, 1.0], [10.0, 1.0], [12.0, 1.0]]), torch.tensor([0, 0, 1, 1]))
    >>> round(metric.compute()["instance_snr"].item(), 6)
    24.5
    """

    names = (*VIEW_FORMULAS, *(f"{name}_standard_error" for name in VIEW_FORMULAS))

    def __init__(self, num_classes: int, *, per_class: int = 10, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(num_classes, per_class=per_class, seed=seed, **kwargs)

    def _values(self) -> dict[str, Tensor]:
        points = self._points()
        found = {name: formula(*points) for name, formula in VIEW_FORMULAS.items()}
        errors = {f"{name}_standard_error": each.standard_error for name, each in found.items()}
        return {name: each.value for name, each in found.items()} | errors
