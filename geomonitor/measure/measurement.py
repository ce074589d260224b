"""One measurement in progress: features and outputs of the probe's points go in, markers come out.

The points come from a pass of the probe set through the model, or from the forward passes of the validation loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomonitor._distributed import ALL_PROCESSES, Processes
from geomonitor._threads import threads_for
from geomonitor.errors import InputError, MeasurementError
from geomonitor.features.linear_head import Head
from geomonitor.features.outputs import logits_in
from geomonitor.features.routers import RouterNames
from geomonitor.glue.estimates import Measures, standard_errors
from geomonitor.glue.options import GeometryOptions
from geomonitor.markers.coherence import COHERENCE, residuals_of
from geomonitor.markers.logits import LOGIT_FORMULAS, point_statistics
from geomonitor.markers.routing_layers import ROUTING_MARKERS
from geomonitor.markers.table import TRUTH
from geomonitor.markers.transfer import share
from geomonitor.measure.compute import coherence_in_head, compute_logit_markers, compute_markers
from geomonitor.measure.head_check import HeadCheck
from geomonitor.measure.points import PointBuffer
from geomonitor.measure.routing import RoutingBuffer
from geomonitor.measure.tokens import TOKEN_ENTROPY, mean_entropy
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.transfer import TransferProbe

NONFINITE_ROWS = "nonfinite_rows"
"""Marker name of how many points of the probe have NaN or infinite features; those points are left out."""
FEWEST_POINTS = 2
"""Finite points that each class has to keep for a layer to be measured: a class of one point has no variance."""


OF_THE_HEAD = ("nc3", "nc4", COHERENCE)
"""Markers that need the linear head that a layer feeds."""

ReadHeads = Callable[[Mapping[str, int]], Mapping[str, Head]]
"""From the width of each layer to the linear head that it feeds."""


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
    truth: TransferProbe | None = None
    """on which transfer is measured"""
    views: ProbeSet | None = None
    """views of the points, if the points have no labels"""
    sequences: Tensor | None = None
    """``(Q,)`` the sequence to which a point belongs, by id, if points are tokens"""
    routers: RouterNames = None
    """of a mixture of experts; None: found"""
    coherence_probe: ProbeSet | None = None
    """training points, whose gradients with respect to all parameters are compared"""
    attributes: tuple[int, int] | None = None
    """numbers of values ``(A, B)`` of two attributes, whose combinations are the classes"""
    coherence_loss: Callable[[Any, Tensor], Tensor] | None = None
    """of an output and a label, of which those gradients are; None: cross-entropy"""

    @property
    def routed(self) -> bool:
        """Whether markers of routing are measured."""
        return any(name in ROUTING_MARKERS for name in self.markers)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that is measured of a layer."""
        return (*self.markers, *(TRUTH if self.truth is not None else ()), NONFINITE_ROWS)


class Measurement:
    """Collects what one measurement needs; every process makes the same calls, whatever happens in it.

    Args:
        plan: what to measure.
        layers: aliases.
        references: features to which the drift is measured, by layer.
        device: of the model.
        warn: warns the user: takes the message and a key of its cause, the same key for the same cause.
        logits: which output holds the logits, by the names of ``outputs_of``; None: by the rule of ``logits_in``.
        has_logits: False: no output is known as the logits of the layers' head.
        read_heads: gives the linear heads that the layers feed; called if markers need them. None: there are none.
        processes: that measure together.
    """

    def __init__(
        self,
        plan: Plan,
        layers: Collection[str],
        references: Mapping[str, Tensor],
        device: torch.device,
        warn: Callable[[str, str], None],
        *,
        logits: str | None = None,
        has_logits: bool = True,
        read_heads: ReadHeads | None = None,
        processes: Processes = ALL_PROCESSES,
    ) -> None:
        self.plan = plan
        self.processes = processes
        self.device = device
        self.warn = warn
        self.points: dict[str, tuple[Tensor, Tensor]] = {}
        """points ``(Q, N)`` and class numbers ``(Q,)`` by layer that was measured, after :meth:`compute`"""
        self.latest_points: dict[str, Tensor] = {}
        """features of the probe by layer, for a later drift, after :meth:`compute`"""
        self.influences: dict[str, Tensor] = {}
        """``(T, 10)`` by layer: what each direction adds to the errors of the geometry, after :meth:`compute`"""
        self.routing = RoutingBuffer(plan.markers, processes, warn)
        """what routers decide, if that is measured"""
        self.dtypes: dict[str, str] = {}
        """dtype in which each layer computed"""
        self.batch_matters = False
        """whether the features of a point depend on the others of its batch, if that was looked at"""
        self._where = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self._layers = tuple(layers)
        self._read_heads = read_heads
        self._references = references
        self._classes = torch.tensor(plan.classes)
        self._features = PointBuffer(self._where, processes)
        self._logits = PointBuffer(self._where, processes)
        self._residuals = PointBuffer(self._where, processes)
        self._entropies = PointBuffer(torch.device("cpu"), processes)
        self._place = logits
        self._logits_found = self._needs_logits and has_logits
        checked = has_logits and read_heads is not None and any(name in OF_THE_HEAD for name in plan.markers)
        self._check = HeadCheck(plan.classes, logits, self._where, processes) if checked else None

    def update(self, features: Mapping[str, Tensor], outputs: Mapping[str, Any], labels: Tensor, ids: Tensor) -> None:
        """Add a batch.

        Args:
            features: ``(B, N)`` by layer, each on any device; rows with NaN or infinite values are counted and left
                out. Ignored if ``labels`` is empty: those rows were borrowed to keep processes in lockstep.
            outputs: what the model returned: under ``""`` for the inputs as they are, else by name of the shift.
            labels: ``(B,)`` labels of the data.
            ids: ``(B,)`` ids of the points.

        Raises:
            MeasurementError: not one row of features for each point.
        """
        classes = torch.searchsorted(self._classes, labels)
        rows = {layer: _of_batch(features[layer], layer, len(classes)) for layer in self._layers}
        self._features.add(rows, classes=classes, ids=ids)
        if self._check is not None:
            self._check.add(outputs.get(""), classes, ids)
        statistics: dict[str, Tensor] = {}
        residuals: dict[str, Tensor] = {}
        for name, output in outputs.items():
            logits = logits_in(output, self.plan.classes, self._place) if self._logits_found else None
            self._logits_found = logits is not None and (len(logits) == len(classes) or not len(classes))
            if self._logits_found and logits is not None:
                statistics[name] = point_statistics(logits[: len(classes)], labels)
                if not name and COHERENCE in self.plan.markers:
                    residuals[name] = residuals_of(logits[: len(classes)], labels)
        if self._logits_found:
            self._logits.add(statistics, classes=classes, ids=ids)
            self._residuals.add(residuals, classes=classes, ids=ids)

    def update_sequences(self, entropies: Mapping[str, Tensor], sequences: Tensor) -> None:
        """Add entropies of the tokens of sequences.

        Args:
            entropies: ``(B, 1)`` by layer.
            sequences: ``(B,)`` numbers.
        """
        rows = {layer: _of_batch(values, layer, len(sequences)) for layer, values in entropies.items()}
        self._entropies.add(rows, classes=torch.zeros_like(sequences), ids=sequences)

    def compute_after(self, collect: Callable[[], None]) -> dict[str, dict[str, tuple[float, float]]]:
        """Run what adds this process's points, then :meth:`compute`, in all processes or in none.

        Raises:
            Exception: what ``collect`` raised in this process.
            ElsewhereError: it failed in another one.
        """
        failure: Exception | None = None
        try:
            collect()
        except Exception as error:  # noqa: BLE001 - the other processes must know of it first
            failure = error
        if not self.processes.all(failure is None, self.device):
            raise failure or ElsewhereError("the probe pass failed in another process")
        return self.compute()

    def compute(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Marker and standard error by layer and name, ``NONFINITE_ROWS`` among them, over the points of all processes.

        A layer in which a class keeps fewer than two finite points has NaN markers; the other layers are measured.
        """
        # All or none: a process that gathers would wait for one that does not.
        logits_found = self._needs_logits and self.processes.all(self._logits_found, self.device)
        logits = self._logits.gather().rows if logits_found else {}
        residuals = self._residuals.gather().rows if logits_found and COHERENCE in self.plan.markers else {}
        features = self._features.gather()
        seen = torch.bincount(features.classes, minlength=len(self.plan.classes)).tolist()
        if empty := [label for label, points in zip(self.plan.classes, seen, strict=True) if not points]:
            raise InputError(f"every class needs at least one point; classes without any: {empty}")
        finite = {layer: features.rows[layer].isfinite().all(dim=1).cpu() for layer in self._layers}
        values: dict[str, dict[str, tuple[float, float]]] = {}
        entropies = self._entropies.gather().rows if TOKEN_ENTROPY in self.plan.markers else {}
        of_routers = self.routing.compute() if self.plan.routed else {}
        groups = None if self.plan.sequences is None else self.plan.sequences[features.ids]
        heads = self._heads_of(features.rows)
        with threads_for(len(self.plan.classes) * self.plan.per_class, self.device):
            of_logits = self._of_logits(logits) if self._needs_logits else {}
            for layer, kept in finite.items():
                rows, classes = features.rows[layer][kept.to(self._where)], features.classes[kept]
                measured = self._enough(layer, classes, left_out=features.classes[~kept])
                own = groups if groups is None else groups[kept]
                head, whole = heads.get(layer, Head()), bool(kept.all())
                found = self._of_layer(layer, rows, classes, own, head, whole=whole) if measured else {}
                of_tokens = self._of_tokens(layer, entropies[layer]) if layer in entropies else {}
                if measured and residuals:
                    of_points = residuals[""][kept.to(self._where)]
                    found[COHERENCE] = coherence_in_head(rows, of_points, head, groups=own)
                left_out = (float((~kept).sum()), math.nan)
                found = {**of_logits, **of_routers, **found, **of_tokens}
                values[layer] = {**self._undefined, **found, NONFINITE_ROWS: left_out}
        return values

    def _heads_of(self, rows: Mapping[str, Tensor]) -> Mapping[str, Head]:
        """Heads by layer, if markers need them; warns of a head that is not linear."""
        asked = [name for name in OF_THE_HEAD if name in self.plan.markers]
        if not asked or self._read_heads is None:
            return {}
        heads = self._read_heads({layer: rows[layer].shape[1] for layer in self._layers})
        if self._check is not None:
            heads = self._check.of(heads, rows, self.dtypes, self.device)
        for layer, head in heads.items():
            if head.reason:
                self.warn(
                    f"layer {layer!r} feeds the logits, but not through a linear head: {head.reason}. "
                    f"{', '.join(asked)} of it are NaN. Leave them out, or make the last step to the logits a linear "
                    "layer of its own.",
                    f"no linear head behind {layer}",
                )
        return heads

    def _of_tokens(self, layer: str, entropies: Tensor) -> dict[str, tuple[float, float]]:
        found = mean_entropy(entropies[:, 0])
        if math.isnan(found[0]):
            self.warn(
                f"layer {layer!r} gives no tokens (B, L, N), or sequences of which no two tokens differ: "
                f"{TOKEN_ENTROPY} is NaN. Name a layer ahead of the pooling, or leave it out.",
                f"no entropy in {layer}",
            )
        return {TOKEN_ENTROPY: found}

    def _of_layer(
        self, layer: str, rows: Tensor, classes: Tensor, groups: Tensor | None, head: Head, *, whole: bool
    ) -> dict[str, tuple[float, float]]:
        """The markers of one layer from its finite points; ``whole``: they are all of the probe's."""
        self.points[layer] = rows, classes
        reference = None
        if whole and "drift" in self.plan.markers:
            self.latest_points[layer] = rows.float()  # half the size in a checkpoint
            reference = self._references.get(layer, self.latest_points[layer])  # the first one is its own reference
        markers = compute_markers(
            rows,
            classes,
            self.plan.markers,
            head=head,
            reference=reference,
            geometry_options=self.plan.geometry.as_dict(),
            dtype=self.dtypes.get(layer, "float32"),
            groups=groups,
            attributes=self.plan.attributes,
            processes=self.processes,
        )
        if markers.hidden:
            self.warn(
                f"the points of a class differ in layer {layer!r} by little more than the rounding of "
                f"{self.dtypes.get(layer, 'float32')}: {', '.join(markers.hidden)} are NaN. Features are nearly "
                "collapsed, or all equal; half precision hides what a model in float32 would show.",
                f"variation is rounding in {layer}",
            )
        if markers.influence is not None:
            self.influences[layer] = markers.influence
        return markers.values

    def _enough(self, layer: str, classes: Tensor, left_out: Tensor) -> bool:
        """Whether each class keeps enough points; warns of rows that are left out."""
        if not len(left_out):
            return True
        kept, bad = (torch.bincount(part, minlength=len(self.plan.classes)).tolist() for part in (classes, left_out))
        rows = {label: n for label, n in zip(self.plan.classes, bad, strict=True) if n}
        few = [label for label, n in zip(self.plan.classes, kept, strict=True) if n < FEWEST_POINTS]
        consequence = (
            f"fewer than {FEWEST_POINTS} points are left of classes {few}, so the layer's markers are NaN"
            if few
            else "it is measured on the rest"
        )
        self.warn(
            f"layer {layer!r} gave rows with NaN or infinite values, class: rows = {rows}; "
            f"{consequence}. Look for an overflow in the layer (half precision?).",
            f"nonfinite rows in {layer}, {'too few left' if few else 'rest measured'}",
        )
        return not few

    def _of_logits(self, statistics: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
        """Markers of the logits; none, and a warning, if the model gives no logits: an encoder has no accuracy."""
        if not statistics:
            self.warn(
                "the model's output holds no logits (B, C) with a column for each of the labels "
                f"{self.plan.classes}: accuracy and the other markers of logits are NaN. Give GeometryMonitor a "
                "forward that returns logits, or markers without these.",
                "no logits",
            )
            return {}
        bad = {name: int((~rows.isfinite().all(dim=1)).sum()) for name, rows in statistics.items()}
        if any(bad.values()):
            counts = ", ".join(f"{n}{f' under {name}' if name else ''}" for name, n in bad.items() if n)
            self.warn(
                "the markers of logits are NaN: logits must be finite; rows with NaN or infinite values: "
                f"{counts}. Look for an overflow (half precision?).",
                "nonfinite logits",
            )
        return compute_logit_markers({n: rows for n, rows in statistics.items() if not bad[n]}, self.plan.markers)

    @property
    def _undefined(self) -> dict[str, tuple[float, float]]:
        return dict.fromkeys(self.plan.markers, (math.nan, math.nan))

    @property
    def _needs_logits(self) -> bool:
        return bool(self.plan.shifts) or any(name in LOGIT_FORMULAS or name == COHERENCE for name in self.plan.markers)


def change_errors(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[tuple[str, str], float]:
    """Standard errors of the change between two measurements with common draws, by layer and marker.

    Args:
        now: ``influences`` of the later one: ``(T, 10)`` by layer, and cases ``(n,)`` by ``layer/marker``.
        before: those of the earlier one; a layer whose draws differ in number is left out.
    """
    cases = [key for key, values in now.items() if values.ndim == 1 and _shape(before, key) == values.shape]
    paired = {key: share(now[key] - before[key])[1] for key in cases}
    return {(key.rpartition("/")[0], key.rpartition("/")[2]): error for key, error in paired.items()} | {
        (layer, marker): float(error)
        for layer, influence in now.items()
        if influence.ndim > 1 and _shape(before, layer) == influence.shape
        for marker, error in zip(Measures._fields, standard_errors(influence - before[layer]), strict=True)
    }


def _shape(influences: Mapping[str, Tensor], key: str) -> torch.Size | None:
    return influences[key].shape if key in influences else None


def _of_batch(features: Tensor, layer: str, points: int) -> Tensor:
    """Features without the rows that were borrowed to keep processes in lockstep."""
    if points and len(features) != points:
        raise MeasurementError(
            f"layer {layer!r} gave {len(features)} rows for {points} points: its batch does not come first. "
            "Give GeometryMonitor a pool function of (tensor, mask) that returns one row a point, or forward= a "
            "function that runs the model on the points alone."
        )
    return features[:points]
