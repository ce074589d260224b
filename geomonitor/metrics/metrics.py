"""Markers as ``torchmetrics.Metric`` classes: state and synchronisation. The formulas live in ``geomonitor.markers``.

One class per kind of state. Each takes ``update(features, labels)`` any number of times, in any batch split and on any
number of processes, and gives ``compute() -> dict[str, Tensor]`` with the names that ``geomonitor.markers`` lists.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.glue.draws import Dichotomies
from geomonitor.glue.manifolds import Mode, manifold_geometry
from geomonitor.glue.ranks import ProcessGroup
from geomonitor.glue.result import EffectiveGeometry
from geomonitor.markers.collapse import collapse_of
from geomonitor.markers.inputs import require_labels, require_matrix
from geomonitor.markers.logits import point_statistics, statistics_of
from geomonitor.markers.point_markers import point_markers
from geomonitor.markers.spectrum import spectrum_markers, spectrum_of
from geomonitor.metrics.states import MomentMetric, PointMetric
from geomonitor.probe import reservoir


class FeatureSpectrum(MomentMetric):
    """Markers of the spectrum of all features: participation ratio, numerical, effective and stable rank,
    RankMe, power law, outliers.

    State: mergeable float64 moments, at most ``2 N x N`` numbers, however many points come.

    >>> metric = FeatureSpectrum()
    >>> metric.update(torch.eye(4))
    >>> metric.update(-torch.eye(4))
    >>> round(metric.compute()["participation_ratio"].item(), 6)
    4.0
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(num_classes=1, **kwargs)

    def update(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Add points.

        Args:
            features: ``(B, N)``, any real dtype.
            labels: ignored; there so that all metrics of a collection take the same call.

        Raises:
            InputError: wrong shape or dtype, or another width than before.
        """
        require_matrix(features)
        self._add(*self._checked(features, features.new_zeros(len(features), dtype=torch.int64)))

    def compute(self) -> dict[str, Tensor]:
        """The markers of :mod:`geomonitor.markers.spectrum` by name, 0-dim float64.

        Raises:
            InputError: no points, or NaN or infinite ones (how many).
        """
        return spectrum_markers(spectrum_of(self._all_moments()))


class ClassStructure(MomentMetric):
    """Markers of class structure: neural collapse (NC1 to NC3), class-distance normalised variance.

    State: mergeable float64 moments, at most ``P x N + 2 N x N`` numbers, however many points come.

    Args:
        num_classes: labels are integers in ``0 .. num_classes - 1``.
        weight: ``(num_classes, N)`` weights of a linear head on these features; without them NC3 is NaN.

    >>> metric = ClassStructure(num_classes=2)
    >>> metric.update(torch.tensor([[1.0, 0.1], [-1.0, 0.1]]), torch.tensor([0, 1]))
    >>> metric.update(torch.tensor([[1.0, -0.1], [-1.0, -0.1]]), torch.tensor([0, 1]))
    >>> round(metric.compute()["nc1_ratio"].item(), 6)
    0.01
    """

    def __init__(self, num_classes: int, *, weight: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.weight = None if weight is None else weight.detach()

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add points.

        Args:
            features: ``(B, N)``, any real dtype.
            labels: ``(B,)`` integers in ``0 .. num_classes - 1``.

        Raises:
            InputError: wrong shape or dtype, or another width than before.
        """
        self._add(*self._checked(features, labels))

    def compute(self) -> dict[str, Tensor]:
        """The markers of :mod:`geomonitor.markers.collapse` by name, 0-dim float64.

        Raises:
            InputError: a class without points, labels out of range, NaN or infinite features (how many of which class).
        """
        return collapse_of(self._all_moments(), self.weight)._asdict()


class ManifoldGeometry(PointMetric):
    """Manifold capacity, dimension, radius, utility and alignments of the class manifolds (GLUE).

    State: at most ``per_class`` points of each class, chosen by ``seed`` and sample id: the same points in any batch
    split, in any order, on any number of processes.

    Args:
        num_classes: labels are integers in ``0 .. num_classes - 1``.
        per_class: points kept of each class (``M``); part of the protocol, keep it for a whole run.
        directions, dichotomies, mode, pairs, seed: as in :func:`geomonitor.manifold_geometry`.

    >>> metric = ManifoldGeometry(num_classes=2, per_class=5)
    >>> for _ in range(3):
    ...     metric.update(torch.randn(8, 20), torch.tensor([0, 1] * 4))
    >>> list(metric.compute())[:4]
    ['capacity', 'dimension', 'radius', 'utility']
    """

    def __init__(
        self,
        num_classes: int,
        *,
        per_class: int = 50,
        directions: int | Tensor = 200,
        dichotomies: Dichotomies | Tensor = "balanced",
        mode: Mode = "joint",
        pairs: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, per_class=per_class, seed=seed, **kwargs)
        self.directions = directions
        self.dichotomies = dichotomies
        self.mode = mode
        self.pairs = pairs
        self.latest: EffectiveGeometry | None = None
        """the whole result of the last ``compute``: samples, residuals, and differences to other results"""

    def compute(self) -> dict[str, Tensor]:
        """The markers of :func:`geomonitor.manifold_geometry` by name, each with its ``..._standard_error``.

        Raises:
            InputError: a class without points, labels out of range, NaN or infinite features (how many of which class).
        """
        self._require_clean()
        points = self._reservoir()
        empty = list(range(self.num_classes))
        if points is not None:
            empty = torch.nonzero((points.priorities == reservoir.EMPTY).all(dim=1)).flatten().tolist()
        if points is None or empty:
            raise InputError(f"every class needs at least one point; classes without any: {empty}")
        geometry = self.latest = manifold_geometry(
            *reservoir.points_and_labels(points),
            directions=self.directions,
            dichotomies=self.dichotomies,
            mode=self.mode,
            pairs=self.pairs,
            seed=self.seed,
            # After a sync all ranks hold the same points: each solves its share of the samples.
            ranks=ProcessGroup(self.process_group) if self._is_synced else None,
        )
        values = geometry.measures._asdict()
        errors = {f"{name}_standard_error": error for name, error in geometry.standard_error._asdict().items()}
        return values | errors


class PointStatistics(PointMetric):
    """Markers of single points and pairs: activity, distances, spectra within classes, TwoNN, NC4, drift.

    State: at most ``per_class`` points of each class, chosen by ``seed`` and sample id as in ``ManifoldGeometry``.

    Args:
        num_classes: labels are integers in ``0 .. num_classes - 1``.
        per_class: points kept of each class.
        seed: which points.
        weight, bias: ``(num_classes, N)`` and ``(num_classes,)`` of a linear head on these features; without weights
            NC4 is NaN.
        reference: ``(Q, K)`` features of the same points at another time, as ``latest_points`` gives them; without them
            the drift is NaN.
        markers: names to compute; by default all. What shares its work with a name may come, too.

    >>> metric = PointStatistics(num_classes=2)
    >>> metric.update(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1]))
    >>> metric.compute()["feature_distance"].item()
    5.0
    """

    def __init__(
        self,
        num_classes: int,
        *,
        per_class: int = 50,
        seed: int = 0,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        reference: Tensor | None = None,
        markers: Collection[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, per_class=per_class, seed=seed, **kwargs)
        self.weight = None if weight is None else weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.reference = reference
        self.markers = None if markers is None else frozenset(markers)
        self.latest_points: Tensor | None = None
        """points of the latest ``compute``, of all processes: a later ``reference``"""
        self.latest_labels: Tensor | None = None
        """their classes"""

    def compute(self) -> dict[str, Tensor]:
        """The markers whose state is ``"points"`` in ``geomonitor.MARKERS``, 0-dim float64.

        Raises:
            InputError: no points, labels out of range, NaN or infinite features, a reference of other points.
        """
        points, labels = self._points()
        self.latest_points, self.latest_labels = points, labels
        return point_markers(
            points,
            labels,
            weight=self.weight,
            bias=self.bias,
            reference=self.reference,
            markers=self.markers,
        )


class LogitStatistics(PointMetric):
    """Markers of the logits: accuracy, confidence, entropy, energy, margin, AUROC, calibration.

    State: five numbers for each of at most ``per_class`` points of a class, chosen as in ``ManifoldGeometry``.

    Args:
        num_classes: labels are integers in ``0 .. num_classes - 1``.
        per_class: points kept of each class.
        seed: which points.
        columns: the column of the logits that belongs to each class; by default column i to class i.

    >>> metric = LogitStatistics(num_classes=2)
    >>> metric.update(torch.tensor([[2.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1]))
    >>> metric.compute()["accuracy"].item()
    0.5
    """

    content = "logits"

    def __init__(
        self,
        num_classes: int,
        *,
        per_class: int = 50,
        seed: int = 0,
        columns: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, per_class=per_class, seed=seed, **kwargs)
        self.columns = tuple(range(num_classes) if columns is None else columns)
        if len(self.columns) != num_classes:
            raise InputError(f"columns must name one column for each of {num_classes} classes; got {self.columns}")

    def update(self, features: Tensor, labels: Tensor, ids: Tensor | None = None) -> None:
        """Add points.

        Args:
            features: ``(B, C)`` logits.
            labels: ``(B,)`` integers in ``0 .. num_classes - 1``.
            ids: ``(B,)`` names of the samples, as in ``ManifoldGeometry``.

        Raises:
            InputError: wrong shape or dtype, or fewer columns than the classes need.
        """
        require_matrix(features)
        require_labels(labels, len(features))
        if features.shape[1] < 2 or not all(0 <= column < features.shape[1] for column in self.columns):
            raise InputError(f"classes have columns {self.columns}, but the logits have shape {tuple(features.shape)}")
        places = torch.tensor(self.columns, device=labels.device)
        statistics = point_statistics(features, places[labels.clamp(0, self.num_classes - 1)])
        super().update(statistics, labels, ids)

    def compute(self) -> dict[str, Tensor]:
        """The markers of :mod:`geomonitor.markers.logits` by name, 0-dim float64.

        Raises:
            InputError: no points, labels out of range, NaN or infinite logits.
        """
        return statistics_of(self._points()[0])._asdict()
