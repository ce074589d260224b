"""Metrics of chosen points: manifold geometry, markers of points and pairs, markers of logits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.glue.draws import Dichotomies
from geomonitor.glue.estimates import Measures
from geomonitor.glue.manifolds import Mode, manifold_geometry
from geomonitor.glue.options import GeometryOptions
from geomonitor.glue.ranks import ProcessGroup
from geomonitor.glue.result import EffectiveGeometry
from geomonitor.markers.formulas import FEATURE_FORMULAS, feature_markers
from geomonitor.markers.inputs import given_matrix, require_labels, require_matrix
from geomonitor.markers.layer_points import LayerPoints
from geomonitor.markers.logits import LogitMarkers, point_statistics, statistics_of
from geomonitor.markers.names import marker_names
from geomonitor.markers.table import MARKERS
from geomonitor.metrics.point_state import PointMetric


class ManifoldGeometry(PointMetric):
    """Manifold capacity, dimension, radius, utility and alignments of the class manifolds (GLUE).

    State: at most ``per_class`` points of each class, chosen by ``seed`` and id: the same points in any batch
    split, in any order, on any number of processes.

    Args:
        num_classes: labels are integers in ``0 .. num_classes - 1``.
        per_class: points kept of each class (``M``); part of the protocol, keep it for a whole run.
        directions, dichotomies, mode, pairs, seed, ridge: as in :func:`geomonitor.manifold_geometry`.

    >>> metric = ManifoldGeometry(num_classes=2, per_class=5)
    >>> for _ in range(3):
    ...     metric.update(torch.randn(8, 20), torch.tensor([0, 1] * 4))
    >>> list(metric.compute())[:4]
    ['capacity', 'dimension', 'radius', 'utility']
    """

    names = (*Measures._fields, *(f"{name}_standard_error" for name in Measures._fields))

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
        ridge: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, per_class=per_class, seed=seed, **kwargs)
        drawn: dict[str, Any] = {} if isinstance(directions, Tensor) else {"directions": directions}
        named: dict[str, Any] = {} if isinstance(dichotomies, Tensor) else {"dichotomies": dichotomies}
        options = GeometryOptions(**drawn, **named, mode=mode, pairs=pairs, seed=seed, ridge=ridge)
        self.ridge, self.mode, self.pairs = options.ridge, options.mode, options.pairs
        self.directions: int | Tensor = directions if isinstance(directions, Tensor) else options.directions
        self.dichotomies = dichotomies

    def geometry(self) -> EffectiveGeometry:
        """The whole result for the points so far: also scalars, residuals, and differences to other results.

        With several processes, every one of them has to call this.

        Raises:
            InputError: as :meth:`compute`.
        """
        with self._synced():
            return self._geometry()

    def _geometry(self) -> EffectiveGeometry:
        features, labels = self._points()
        empty = torch.nonzero(torch.bincount(labels, minlength=self.num_classes) == 0).flatten().tolist()
        if empty:
            raise InputError(f"every class needs at least one point; classes without any: {empty}")
        return manifold_geometry(
            features,
            labels,
            directions=self.directions,
            dichotomies=self.dichotomies,
            mode=self.mode,
            pairs=self.pairs,
            seed=self.seed,
            ridge=self.ridge,
            # After a sync all ranks hold the same points: each solves its share of the directions.
            ranks=ProcessGroup(self.process_group) if self._is_synced else None,
        )

    def _values(self) -> dict[str, Tensor]:
        geometry = self._geometry()
        return dict(zip(self.names, (*geometry.measures, *geometry.standard_error), strict=True))


class PointStatistics(PointMetric):
    """Markers of single points and pairs: activity, distances, spectra within classes, TwoNN, NC4, drift.

    State: at most ``per_class`` points of each class, chosen by ``seed`` and id as in ``ManifoldGeometry``.

    Args:
        num_classes: labels are integers in ``0 .. num_classes - 1``.
        per_class: points kept of each class.
        seed: which points.
        weight, bias: ``(num_classes, N)`` and ``(num_classes,)`` of a linear head on these features; without weights
            NC4 is NaN.
        reference: ``(Q, K)`` features of the same points at another time, as :meth:`points` gives them; without them
            the drift is NaN.
        markers: names to compute; by default all.

    Raises:
        InputError: a name that is not among the markers whose state is ``"points"``.

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
        self.weight, self.bias = given_matrix("weight", weight), given_matrix("bias", bias)
        self.reference = given_matrix("reference", reference)
        every = tuple(name for name in FEATURE_FORMULAS if MARKERS[name].state == "points")
        self.names = every if markers is None else marker_names(_options.names("markers", markers, "['nc4']"))
        if not set(self.names) <= set(every):
            raise InputError(f"markers must be among {', '.join(every)}; got {self.names}")

    def points(self) -> tuple[Tensor, Tensor]:
        """The points held, ``(Q, N)``, and their classes, ``(Q,)``, in an order that depends on their ids alone.

        With several processes, those of all of them, and every one has to call this.

        Raises:
            InputError: as :meth:`compute`.
        """
        with self._synced():
            return self._points()

    def _values(self) -> dict[str, Tensor]:
        points = LayerPoints(*self._points(), weight=self.weight, bias=self.bias, reference=self.reference)
        return feature_markers(points, self.names)


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
    names = LogitMarkers._fields

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
        given = range(self.num_classes) if columns is None else columns
        _options.instance("columns", given, (Sequence, np.ndarray), "a list of columns")
        self.columns = tuple(_options.whole("each of columns", column, least=0) for column in given)
        if len(self.columns) != self.num_classes:
            raise InputError(f"columns must name one column for each of {num_classes} classes; got {self.columns}")

    def update(self, features: Tensor, labels: Tensor, ids: Tensor | None = None) -> None:
        """Add points.

        Args:
            features: ``(B, C)`` logits.
            labels: ``(B,)`` integers in ``0 .. num_classes - 1``.
            ids: ``(B,)`` names of the points, as in ``ManifoldGeometry``.

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

    def _values(self) -> dict[str, Tensor]:
        return statistics_of(self._points()[0])._asdict()
