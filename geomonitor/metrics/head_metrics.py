"""Metric of the last layer: features and logits of the same points, side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.markers.coherence import COHERENCE, coherence_of, residuals_of
from geomonitor.markers.inputs import on_float64_device, require_labels, require_matrix
from geomonitor.metrics.point_state import PointMetric


class GradientCoherence(PointMetric):
    """Coherence of the gradients of single points with respect to the last linear layer, with its standard error.

    State: features and residuals (softmax less the class) of at most ``per_class`` points of each class, chosen by
    ``seed`` and id as in ``ManifoldGeometry``.

    Args:
        num_classes: labels are integers in ``0 .. num_classes - 1``, and columns of the logits.
        per_class: points kept of each class.
        seed: which points.
        outputs: columns of the logits; by default ``num_classes``.
        bias: whether the layer has one.

    Raises:
        InputError: fewer outputs than classes.

    >>> metric = GradientCoherence(num_classes=2, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    >>> metric.update(x, torch.zeros(3, 2), y)
    >>> round(metric.compute()["coherence"].item(), 6)
    0.333333
    """

    content = "features and logits"
    names = (COHERENCE, f"{COHERENCE}_standard_error")

    def __init__(
        self,
        num_classes: int,
        *,
        per_class: int = 50,
        seed: int = 0,
        outputs: int | None = None,
        bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, per_class=per_class, seed=seed, **kwargs)
        self.outputs = self.num_classes if outputs is None else _options.whole("outputs", outputs)
        if self.outputs < self.num_classes:
            raise InputError(f"each class needs a column of the logits: {num_classes} classes, outputs={outputs}")
        self.bias = _options.flag("bias", bias)

    def update(  # type: ignore[override]
        self, features: Tensor, logits: Tensor, labels: Tensor, ids: Tensor | None = None
    ) -> None:
        """Add points.

        Args:
            features: ``(B, N)`` inputs of the last layer.
            logits: ``(B, C)`` its outputs for the same points.
            labels: ``(B,)`` integers in ``0 .. num_classes - 1``.
            ids: ``(B,)`` names of the points, as in ``ManifoldGeometry``.

        Raises:
            InputError: wrong shape or dtype, other numbers of rows or columns.
        """
        require_matrix(features)
        require_matrix(logits)
        require_labels(labels, len(features))
        if logits.shape != (len(features), self.outputs):
            raise InputError(
                f"logits must have one row for each of {len(features)} points and {self.outputs} columns; got "
                f"{tuple(logits.shape)}"
            )
        residuals = residuals_of(logits, labels.clamp(0, self.num_classes - 1))
        rows = on_float64_device(features.detach()).to(torch.float64)
        super().update(torch.cat([residuals.to(rows.device), rows], dim=1), labels, ids)

    def _values(self) -> dict[str, Tensor]:
        rows = self._points()[0]
        found = coherence_of(rows[:, self.outputs :], rows[:, : self.outputs], bias=self.bias)
        return dict(zip(self.names, found, strict=True))
