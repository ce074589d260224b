"""Metric of two attributes of the points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.markers.factors import LinearFactors, factors_of
from geomonitor.markers.inputs import require_labels, require_matrix
from geomonitor.metrics.moment_metrics import MomentMetric


class FactorStructure(MomentMetric):
    """Whether two attributes of the points, such as shape and colour, are linear factors of the features.

    State: mergeable float64 means and scatter of the cells, at most ``A B N + 2 N x N`` numbers.

    Args:
        shape: ``(A, B)``, the number of values of the first and of the second attribute.

    Raises:
        InputError: not two numbers, each two or more.

    >>> metric = FactorStructure((2, 2))
    >>> shape, colour = torch.tensor([0, 0, 1, 1]).repeat(2), torch.tensor([0, 1, 0, 1]).repeat(2)
    >>> metric.update(torch.stack([shape, colour], dim=1) + 0.01 * torch.eye(8, 2), shape, colour)
    >>> round(metric.compute()["linear_factor_score"].item(), 3)
    1.0
    """

    names = LinearFactors._fields

    def __init__(self, shape: Sequence[int], **kwargs: Any) -> None:
        numbers = tuple(
            _options.whole("each of shape", n, least=2)
            for n in _options.instance("shape", shape, Sequence, "two numbers")
        )
        if len(numbers) != 2:
            raise InputError(f"shape has the number of values of two attributes; got {shape!r}")
        super().__init__(numbers[0] * numbers[1], **kwargs)
        self.shape = numbers

    def update(self, features: Tensor, first: Tensor, second: Tensor) -> None:  # type: ignore[override]
        """Add points.

        Args:
            features: ``(B, N)``, any real dtype.
            first: ``(B,)`` integers in ``0 .. A - 1``, the first attribute.
            second: ``(B,)`` integers in ``0 .. B - 1``, the second.

        Raises:
            InputError: wrong shape or dtype, or another width than before.
        """
        require_matrix(features)
        require_labels(first, len(features))
        require_labels(second, len(features))
        second = second.to(first.device)
        known = (first >= 0) & (first < self.shape[0]) & (second >= 0) & (second < self.shape[1])
        self._add(*self._checked(features, torch.where(known, first * self.shape[1] + second, -1)))

    def _values(self) -> dict[str, Tensor]:
        return factors_of(self._all_moments(), self.shape)._asdict()
