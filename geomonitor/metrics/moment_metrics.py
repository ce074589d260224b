"""Metrics of the spectrum and of class structure: their state has a bounded size, whatever the number of points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.markers import moments as moment
from geomonitor.markers.collapse import NeuralCollapse, collapse_of
from geomonitor.markers.inputs import given_matrix, require_matrix
from geomonitor.markers.singular_values import Spectrum
from geomonitor.markers.spectrum import SPECTRUM_FORMULAS
from geomonitor.metrics.states import FeatureMetric, require_width


class MomentMetric(FeatureMetric):
    """A metric whose state is counts, means and scatter of the points in each class: at most ``2 N x N`` numbers."""

    counts: list[Tensor]
    means: list[Tensor]
    factors: list[Tensor]
    spreads: list[Tensor]

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        for name in ("counts", "means", "factors", "spreads"):
            self.add_state(name, [], dist_reduce_fx=None)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add points.

        Args:
            features: ``(B, N)``, any real dtype.
            labels: ``(B,)`` integers in ``0 .. num_classes - 1``.

        Raises:
            InputError: wrong shape or dtype, or another width than before.
        """
        self._add(*self._checked(features, labels))

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


class FeatureSpectrum(MomentMetric):
    """Markers of the spectrum of all features: participation ratio, numerical, effective and stable rank,
    RankMe, power law, outliers.

    State: mergeable float64 mean and scatter, at most ``2 N x N`` numbers, whatever the number of points.

    >>> metric = FeatureSpectrum()
    >>> metric.update(torch.eye(4))
    >>> metric.update(-torch.eye(4))
    >>> round(metric.compute()["participation_ratio"].item(), 6)
    4.0
    """

    names = tuple(SPECTRUM_FORMULAS)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(num_classes=1, **kwargs)

    def update(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Add points ``(B, N)``; labels are accepted because collections of metrics pass them, and ignored."""
        require_matrix(features)
        self._add(*self._checked(features, features.new_zeros(len(features), dtype=torch.int64)))

    def _values(self) -> dict[str, Tensor]:
        moments = self._all_moments()
        spectrum = Spectrum(moments.factor, moments.means[0], int(moments.counts.sum()))
        return {name: formula(spectrum) for name, formula in SPECTRUM_FORMULAS.items()}


class ClassStructure(MomentMetric):
    """Markers of class structure: neural collapse (NC1 to NC3), class-distance normalised variance.

    State: mergeable float64 means and scatter, at most ``P x N + 2 N x N`` numbers, whatever the number of points.

    Args:
        num_classes: labels are integers in ``0 .. num_classes - 1``.
        weight: ``(num_classes, N)`` weights of a linear head on these features; without them NC3 is NaN.

    >>> metric = ClassStructure(num_classes=2)
    >>> metric.update(torch.tensor([[1.0, 0.1], [-1.0, 0.1]]), torch.tensor([0, 1]))
    >>> metric.update(torch.tensor([[1.0, -0.1], [-1.0, -0.1]]), torch.tensor([0, 1]))
    >>> round(metric.compute()["nc1_ratio"].item(), 6)
    0.01
    """

    names = NeuralCollapse._fields

    def __init__(self, num_classes: int, *, weight: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.weight = given_matrix("weight", weight)

    def _values(self) -> dict[str, Tensor]:
        return collapse_of(self._all_moments(), self.weight)._asdict()
