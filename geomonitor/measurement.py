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

from geomonitor.errors import InputError, MeasurementError
from geomonitor.markers import MARKERS
from geomonitor.markers.drift import drift
from geomonitor.markers.effective_geometry import EffectiveGeometry
from geomonitor.markers.estimates import Measures, standard_errors
from geomonitor.markers.threads import threads_for
from geomonitor.metrics import ClassStructure, FeatureSpectrum, LogitStatistics, ManifoldGeometry, PointStatistics
from geomonitor.outputs import Head, logits_in
from geomonitor.processes import all_processes
from geomonitor.shifts import SHIFT_MARKER


class Plan(NamedTuple):
    """What to measure; the same for every measurement of a run."""

    classes: tuple[int, ...]
    """labels of the data, ascending"""
    per_class: int
    markers: tuple[str, ...]
    shifts: tuple[str, ...]
    """names of the input shifts under which the accuracy is measured"""
    geometry_options: dict[str, Any]
    """of :class:`geomonitor.ManifoldGeometry`"""


class Measurement:
    """Collects what one measurement needs; every process makes the same calls, whatever happens to it.

    Args:
        plan: what to measure.
        heads: the linear head that a layer feeds, by alias of the layer; its keys are the layers.
        references: features to which the drift is measured, by layer.
        device: where the model is.
        tell: is told what the user should know, each time.
    """

    def __init__(
        self,
        plan: Plan,
        heads: Mapping[str, Head],
        references: Mapping[str, Tensor],
        device: torch.device,
        tell: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.device = device
        self.latest_points: dict[str, Tensor] = {}
        """features of the probe by layer, for a later drift, after :meth:`compute`"""
        self.influences: dict[str, Tensor] = {}
        """``(T, 10)`` by layer: what each direction adds to the errors of the geometry, after :meth:`compute`"""
        self._tell = tell
        where = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self._references = references
        self._layers = {layer: self._layer_metrics(layer, head).to(where) for layer, head in heads.items()}
        # The logits as the model sees the probe set, and under each shift: one metric each, by the marker's prefix.
        self._logits = {name: self._logit_metric().to(where) for name in ("", *plan.shifts)}
        self._classes = torch.tensor(plan.classes)
        self._logits_found = self._needs_logits

    def update(self, features: Mapping[str, Tensor], outputs: Mapping[str, Any], labels: Tensor, ids: Tensor) -> None:
        """Add a batch.

        Args:
            features: ``(B, N)`` by layer; passed over where ``labels`` is empty: those rows were borrowed to keep
                processes in lockstep.
            outputs: what the model returned: under ``""`` for the inputs as they are, else by name of the shift.
            labels: ``(B,)`` labels of the data.
            ids: ``(B,)`` ids of the points.

        Raises:
            MeasurementError: not one row of features for each point.
        """
        labels = torch.searchsorted(self._classes, labels)
        for layer, metric in self._layers.items():
            metric.update(_of_batch(features[layer], layer, len(labels)), labels, ids=ids)
        for name, output in outputs.items():
            logits = logits_in(output, self.plan.classes) if self._logits_found else None
            self._logits_found = logits is not None and (len(logits) == len(labels) or not len(labels))
            if self._logits_found and logits is not None:
                self._logits[name].update(logits[: len(labels)], labels, ids=ids)

    def compute(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Marker and standard error by layer and name, over the points of all processes."""
        # All or none: a process that computes would wait for one that does not.
        logits_found = self._needs_logits and all_processes(self._logits_found, self.device)
        with threads_for(len(self.plan.classes) * self.plan.per_class, self.device):
            of_logits = self._logit_values(logits_found)
            computed = {layer: metric.compute() | of_logits for layer, metric in self._layers.items()}
        for layer, metric in self._layers.items():
            if "manifolds" in metric and (geometry := metric["manifolds"].latest) is not None:
                assert isinstance(geometry, EffectiveGeometry)
                self.influences[layer] = geometry.samples.influence.cpu()
        if "drift" in self.plan.markers:
            self._keep_points(computed)
        return {layer: self._with_errors(values) for layer, values in computed.items()}

    @property
    def _needs_logits(self) -> bool:
        markers = [MARKERS[name].state for name in self.plan.markers if name in MARKERS]
        return bool(self.plan.shifts) or "logits" in markers

    def _layer_metrics(self, layer: str, head: Head) -> MetricCollection:
        """The metrics whose markers are asked for, one for each kind of state."""
        classes, per_class = len(self.plan.classes), self.plan.per_class
        wanted = {MARKERS[name].state for name in self.plan.markers if name in MARKERS}
        metrics: dict[str, Metric | MetricCollection] = {}
        if "manifolds" in wanted:
            metrics["manifolds"] = ManifoldGeometry(classes, per_class=per_class, **self.plan.geometry_options)
        if "spectrum" in wanted:
            metrics["spectrum"] = FeatureSpectrum()
        if "classes" in wanted:
            metrics["classes"] = ClassStructure(classes, weight=head.weight)
        if "points" in wanted:
            metrics["points"] = PointStatistics(
                classes,
                per_class=per_class,
                weight=head.weight,
                bias=head.bias,
                reference=self._references.get(layer),
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
            self._tell(
                "the model's output holds no logits (B, C) with a column for each of the labels "
                f"{self.plan.classes}: accuracy and the other markers of logits are NaN. Give GeometryMonitor a "
                "forward that returns logits, or markers without these."
            )
            return values
        try:
            for name, metric in self._logits.items():
                computed = metric.compute()
                values |= {SHIFT_MARKER + name: computed["accuracy"]} if name else computed
        except InputError as error:  # raised in all processes alike, after their sync
            self._tell(f"the markers of logits are NaN: {error}")
        return values

    def _keep_points(self, computed: dict[str, dict[str, Tensor]]) -> None:
        """Remember what a later drift is measured to; the first measurement is its own reference."""
        for layer, metric in self._layers.items():
            points = metric["points"].latest_points
            assert isinstance(points, Tensor)  # computed just now
            points = points.float()  # half the size in a checkpoint
            self.latest_points[layer] = points
            if layer not in self._references:
                computed[layer]["drift"] = drift(points, points)

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
