"""One measurement in progress: features and outputs of the probe's points go in, markers come out.

Where the points come from is not its business: a pass of the probe set through the model, or somebody else's forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from geomonitor._distributed import all_processes, total
from geomonitor._threads import threads_for
from geomonitor.errors import InputError, MeasurementError
from geomonitor.features.outputs import Head, logits_in
from geomonitor.glue.estimates import Measures, standard_errors
from geomonitor.glue.options import GeometryOptions
from geomonitor.glue.result import EffectiveGeometry
from geomonitor.markers import MARKERS
from geomonitor.markers.drift import drift
from geomonitor.metrics import ClassStructure, FeatureSpectrum, LogitStatistics, ManifoldGeometry, PointStatistics
from geomonitor.probe.shifts import SHIFT_MARKER

NONFINITE_ROWS = "nonfinite_rows"
"""Marker name of how many points of the probe have NaN or infinite features; those points are left out."""
FEWEST_POINTS = 2
"""Finite points that each class has to keep for a layer to be measured: a class of one point has no shape."""


class ElsewhereError(MeasurementError):
    """Another process could not measure, so no process does."""


class Plan(NamedTuple):
    """What to measure; the same for every measurement of a run."""

    classes: tuple[int, ...]
    """labels of the data, ascending"""
    per_class: int
    markers: tuple[str, ...]
    shifts: tuple[str, ...]
    """names of the input shifts under which the accuracy is measured"""
    geometry: GeometryOptions
    """protocol of the manifold geometry"""
    points: bool = False
    """hold the points, for a snapshot, also where no marker needs them"""


class Measurement:
    """Collects what one measurement needs; every process makes the same calls, whatever happens to it.

    Args:
        plan: what to measure.
        heads: the linear head that a layer feeds, by alias of the layer; its keys are the layers.
        references: features to which the drift is measured, by layer.
        device: where the model is.
        tell: is told what the user should know, each time, and in short why, the same words for the same cause.
    """

    def __init__(
        self,
        plan: Plan,
        heads: Mapping[str, Head],
        references: Mapping[str, Tensor],
        device: torch.device,
        tell: Callable[[str, str], None],
    ) -> None:
        self.plan = plan
        self.device = device
        self.latest_points: dict[str, Tensor] = {}
        """features of the probe by layer, for a later drift, after :meth:`compute`"""
        self.influences: dict[str, Tensor] = {}
        """``(T, 10)`` by layer: what each direction adds to the errors of the geometry, after :meth:`compute`"""
        self.tell = tell
        where = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self._where = where
        self._references = references
        self._layers = {layer: self._layer_metrics(layer, head).to(where) for layer, head in heads.items()}
        # The logits as the model sees the probe set, and under each shift: one metric each, by the marker's prefix.
        self._logits = {name: self._logit_metric().to(where) for name in ("", *plan.shifts)}
        self._classes = torch.tensor(plan.classes)
        # Points of each class that are finite, and that are not.
        self._counts = {layer: torch.zeros(2, len(plan.classes), dtype=torch.int64) for layer in heads}
        self._logits_found = self._needs_logits

    def update(self, features: Mapping[str, Tensor], outputs: Mapping[str, Any], labels: Tensor, ids: Tensor) -> None:
        """Add a batch.

        Args:
            features: ``(B, N)`` by layer, each on any device; rows with NaN or infinite values are counted and left
                out. Passed over where ``labels`` is empty: those rows were borrowed to keep processes in lockstep.
            outputs: what the model returned: under ``""`` for the inputs as they are, else by name of the shift.
            labels: ``(B,)`` labels of the data.
            ids: ``(B,)`` ids of the points.

        Raises:
            MeasurementError: not one row of features for each point.
        """
        labels = torch.searchsorted(self._classes, labels)
        for layer, metric in self._layers.items():
            rows = _of_batch(features[layer], layer, len(labels)).to(self._where)
            finite = rows.isfinite().all(dim=1)
            kept = finite.cpu()
            self._counts[layer] += torch.stack([self._by_class(labels[kept]), self._by_class(labels[~kept])])
            metric.update(rows[finite], labels[kept], ids=ids[kept])
        for name, output in outputs.items():
            logits = logits_in(output, self.plan.classes) if self._logits_found else None
            self._logits_found = logits is not None and (len(logits) == len(labels) or not len(labels))
            if self._logits_found and logits is not None:
                self._logits[name].update(logits[: len(labels)].to(self._where), labels, ids=ids)

    def compute_after(self, collect: Callable[[], None]) -> dict[str, dict[str, tuple[float, float]]]:
        """Run what adds this process's points, then :meth:`compute`, in all processes or in none.

        Raises:
            Exception: what ``collect`` raised in this process.
            ElsewhereError: it failed in another one.
        """
        failure: Exception | None = None
        try:
            collect()
        except Exception as error:  # noqa: BLE001 - told to the other processes first
            failure = error
        if not all_processes(failure is None, self.device):
            raise failure or ElsewhereError("the probe pass failed in another process")
        return self.compute()

    def compute(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Marker and standard error by layer and name, ``NONFINITE_ROWS`` among them, over the points of all processes.

        A layer in which a class keeps fewer than two finite points has NaN markers; the other layers are measured.
        """
        counts = total(torch.stack(list(self._counts.values())), self.device)
        kept, left_out = (dict(zip(self._layers, counts[:, part], strict=True)) for part in (0, 1))
        bad = {layer: self._told_of_nonfinite(layer, kept[layer], rows) for layer, rows in left_out.items()}
        # All or none: a process that computes would wait for one that does not.
        logits_found = self._needs_logits and all_processes(self._logits_found, self.device)
        with threads_for(len(self.plan.classes) * self.plan.per_class, self.device):
            of_logits = self._logit_values(logits_found)
            computed = {
                layer: (self._undefined if bad[layer] else metric.compute()) | of_logits
                for layer, metric in self._layers.items()
            }
        for layer, metric in self._layers.items():
            if "manifolds" in metric and (geometry := metric["manifolds"].latest) is not None:
                assert isinstance(geometry, EffectiveGeometry)
                self.influences[layer] = geometry.samples.influence.cpu()
        if "drift" in self.plan.markers:
            self._keep_points({layer: values for layer, values in computed.items() if not left_out[layer].any()})
        return {
            layer: {**self._with_errors(values), NONFINITE_ROWS: (float(left_out[layer].sum()), math.nan)}
            for layer, values in computed.items()
        }

    def _by_class(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels, minlength=len(self.plan.classes))

    def _told_of_nonfinite(self, layer: str, kept: Tensor, left_out: Tensor) -> bool:
        """Say what is left out of a layer; True where too few points are left to measure it."""
        if not left_out.any():
            return False
        rows = {label: n for label, n in zip(self.plan.classes, left_out.tolist(), strict=True) if n}
        few = [label for label, n in zip(self.plan.classes, kept.tolist(), strict=True) if n < FEWEST_POINTS]
        if "points" in self._layers[layer]:
            self._layers[layer]["points"].reference = None  # of other points than those left
        consequence = (
            f"fewer than {FEWEST_POINTS} points are left of classes {few}, so the layer's markers are NaN"
            if few
            else "it is measured on the rest"
        )
        self.tell(
            f"layer {layer!r} gave rows with NaN or infinite values, class: rows = {rows}; {consequence}. "
            "Look for an overflow in the layer (half precision?).",
            f"nonfinite rows in {layer}, {'too few left' if few else 'rest measured'}",
        )
        return bool(few)

    @property
    def _undefined(self) -> dict[str, Tensor]:
        return dict.fromkeys(self.plan.markers, torch.tensor(math.nan))

    @property
    def points(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Points ``(Q, N)`` and classes ``(Q,)`` by layer, after :meth:`compute`, where they are held."""
        held = {layer: metric["points"] for layer, metric in self._layers.items() if "points" in metric}
        return {
            layer: (metric.latest_points, metric.latest_labels)
            for layer, metric in held.items()
            if isinstance(metric.latest_points, Tensor) and isinstance(metric.latest_labels, Tensor)
        }

    @property
    def _needs_logits(self) -> bool:
        markers = [MARKERS[name].state for name in self.plan.markers if name in MARKERS]
        return bool(self.plan.shifts) or "logits" in markers

    def _layer_metrics(self, layer: str, head: Head) -> MetricCollection:
        """The metrics whose markers are asked for, one for each kind of state."""
        classes, per_class = len(self.plan.classes), self.plan.per_class
        weight, bias = (None if part is None else part.to(self._where) for part in head)
        reference = self._references.get(layer)
        wanted = {MARKERS[name].state for name in self.plan.markers if name in MARKERS}
        metrics: dict[str, Metric | MetricCollection] = {}
        if "manifolds" in wanted:
            metrics["manifolds"] = ManifoldGeometry(classes, per_class=per_class, **self.plan.geometry.as_dict())
        if "spectrum" in wanted:
            metrics["spectrum"] = FeatureSpectrum()
        if "classes" in wanted:
            metrics["classes"] = ClassStructure(classes, weight=weight)
        if "points" in wanted or self.plan.points:
            metrics["points"] = PointStatistics(
                classes,
                per_class=per_class,
                weight=weight,
                bias=bias,
                reference=None if reference is None else reference.to(self._where),
                markers=self.plan.markers,
            )
        return MetricCollection(metrics, compute_groups=False)

    def _logit_metric(self) -> LogitStatistics:
        classes = self.plan.classes
        return LogitStatistics(len(classes), per_class=self.plan.per_class, columns=classes)

    def _logit_values(self, found: bool) -> dict[str, Tensor]:
        """Markers of the logits; NaN, and a warning, where the model gives none: an encoder has no accuracy."""
        undefined = torch.tensor(math.nan)
        values = dict.fromkeys([name for name, row in MARKERS.items() if row.state == "logits"], undefined)
        values |= dict.fromkeys([SHIFT_MARKER + name for name in self.plan.shifts], undefined)
        if not self._needs_logits:
            return values
        if not found:
            self.tell(
                "the model's output holds no logits (B, C) with a column for each of the labels "
                f"{self.plan.classes}: accuracy and the other markers of logits are NaN. Give GeometryMonitor a "
                "forward that returns logits, or markers without these.",
                "no logits",
            )
            return values
        try:
            for name, metric in self._logits.items():
                computed = metric.compute()
                values |= {SHIFT_MARKER + name: computed["accuracy"]} if name else computed
        except InputError as error:  # raised in all processes alike, after their sync
            self.tell(f"the markers of logits are NaN: {error}", "logits")
        return values

    def _keep_points(self, computed: dict[str, dict[str, Tensor]]) -> None:
        """Remember what a later drift is measured to; the first measurement is its own reference."""
        for layer, values in computed.items():
            points = self._layers[layer]["points"].latest_points
            assert isinstance(points, Tensor)  # computed just now
            points = points.float()  # half the size in a checkpoint
            self.latest_points[layer] = points
            if layer not in self._references:
                values["drift"] = drift(points, points)

    def _with_errors(self, computed: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
        return {
            name: (float(computed[name]), float(computed.get(f"{name}_standard_error", math.nan)))
            for name in self.plan.markers
        }


def change_errors(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[tuple[str, str], float]:
    """Standard errors of the change between two measurements with common draws, by layer and marker.

    Args:
        now: ``influences`` of the later one.
        before: those of the earlier one; a layer whose draws differ in number is left out.
    """
    return {
        (layer, marker): float(error)
        for layer, influence in now.items()
        if layer in before and before[layer].shape == influence.shape
        for marker, error in zip(Measures._fields, standard_errors(influence - before[layer]), strict=True)
    }


def _of_batch(features: Tensor, layer: str, points: int) -> Tensor:
    """Features without the rows that were borrowed to keep processes in lockstep."""
    if points and len(features) != points:
        raise MeasurementError(
            f"layer {layer!r} gave {len(features)} rows for {points} points: its batch does not come first. "
            "Give GeometryMonitor a pool function of (tensor, mask) that returns one row a point."
        )
    return features[:points]
