"""START HERE. One measurement, from a model to records: probe set, capture, markers, history, verdict.

:class:`GeometryMonitor` knows no training framework. An adapter, or your own loop, calls its ``measure`` now and then;
the monitor runs the probe set through the model without leaving a trace on it, computes the markers, keeps them in its
history and asks a detector whether a marker has declined.
"""

from __future__ import annotations

import difflib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from geomonitor.alerts import GeometryDeclineWarning, explain
from geomonitor.capture import Layer, Pool, captured, resolve_layers
from geomonitor.decline import Detector, DropFromReference, Verdict, judge
from geomonitor.errors import GeomonitorWarning, InputError, MeasurementError
from geomonitor.isolation import undisturbed
from geomonitor.markers import MARKER_GROUPS, MARKERS
from geomonitor.markers.dichotomies import Dichotomies
from geomonitor.markers.manifolds import Mode
from geomonitor.markers.threads import threads_for
from geomonitor.metrics import ClassStructure, FeatureSpectrum, ManifoldGeometry
from geomonitor.probe import ProbeSet
from geomonitor.records import History, Record

ALARM = "alarm"
"""Marker name of the verdict: 1 while a watched marker is in decline, 0 otherwise."""
SECONDS = "seconds"
"""Marker name of what a measurement cost, in seconds of wall-clock time; its layer is ""."""

Forward = Callable[[nn.Module, Any], Any]


class GeometryMonitor:
    """Measures the geometry of a model's representation on a fixed probe set, and judges whether it declines.

    Args:
        probe: the held-out, in-distribution points to measure on.
        layers: where to measure: ``"penultimate"`` (what goes into the last ``nn.Linear``), a module path with
            ``":input"`` or ``":output"``, a list of these, or a dict ``alias -> path``.
        markers: ``"default"``, ``"all"`` or names of ``geomonitor.MARKERS``.
        detector: what judges each watched marker; ``None`` for no verdicts.
        watch: names of the markers that the detector judges.
        directions, dichotomies, mode, pairs, seed: protocol of the manifold geometry, see
            :func:`geomonitor.manifold_geometry`.
        pool: how outputs with more than two dimensions become ``(Q, N)``, see :func:`geomonitor.capture.captured`.
        forward: ``forward(model, inputs)`` runs the model on one probe batch; by default ``model(inputs)``, or
            ``model(**inputs)`` where the batch is a dict.
        batch_size: points in one forward pass of the probe.
        on_error: ``"warn"``: a measurement that fails is warned of once and its values are NaN; ``"raise"``.

    >>> import geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    >>> model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> monitor = gm.GeometryMonitor(gm.ProbeSet.from_dataset(data, per_class=20))
    >>> records = monitor.measure(model, step=100, epoch=0)
    >>> records[1].layer, records[1].marker
    ('penultimate', 'dimension')
    """

    def __init__(
        self,
        probe: ProbeSet,
        *,
        layers: str | Sequence[str] | Mapping[str, str] = "penultimate",
        markers: str | Sequence[str] = "default",
        detector: Detector | None = DropFromReference(),
        watch: Sequence[str] = ("dimension",),
        directions: int = 200,
        dichotomies: Dichotomies = "balanced",
        mode: Mode = "joint",
        pairs: int | None = None,
        seed: int = 0,
        pool: Pool = "auto",
        forward: Forward | None = None,
        batch_size: int = 128,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise InputError(f'on_error must be "warn" or "raise"; got {on_error!r}')
        if len(probe.classes) < 2:
            raise InputError(f"a probe set needs at least 2 classes; this one has {probe.classes}")
        self.probe = probe
        self.layers = layers
        self.markers = _marker_names(markers)
        self.detector = detector
        self.watch = _marker_names(watch)
        if not set(self.watch) <= set(self.markers):
            raise InputError(f"watch must name measured markers {self.markers}; got {self.watch}")
        self.geometry_options: dict[str, Any] = {
            "directions": directions, "dichotomies": dichotomies, "mode": mode, "pairs": pairs, "seed": seed
        }  # fmt: skip
        self.pool = pool
        self.forward = forward or _call
        self.batch_size = batch_size
        self.on_error = on_error
        self.history = History()
        self.verdicts: dict[str, Verdict] = {}
        """the latest verdict by layer"""
        self.new_alarms: list[Verdict] = []
        """verdicts that the latest measurement turned to "declined" """
        self._failures: set[str] = set()

    @property
    def protocol(self) -> dict[str, Any]:
        """All that makes two measurements comparable: only series with the same protocol may be joined."""
        layers: Any = self.layers
        if not isinstance(layers, str):
            layers = dict(layers) if isinstance(layers, Mapping) else list(layers)
        return {
            "probe": self.probe.fingerprint,
            "classes": list(self.probe.classes),
            "per_class": self.probe.per_class,
            "layers": layers,
            "pool": self.pool if isinstance(self.pool, str) else getattr(self.pool, "__qualname__", "custom"),
            **self.geometry_options,
        }

    def measure(
        self, model: nn.Module, *, step: int, epoch: int | None = None, forward: Forward | None = None
    ) -> list[Record]:
        """Measure the model now; with several processes, every one of them has to call this.

        Args:
            model: left exactly as it was: modes, random number generators, buffers, hooks.
            step: optimiser steps done so far.
            epoch: epoch, from 0, where there are any.
            forward: runs the model this once instead of the monitor's own ``forward``, for instance under autocast.

        Returns:
            The new records, which are also appended to ``history``; ``verdicts`` is up to date afterwards.

        Raises:
            InputError: a layer that does not exist or is ambiguous; wrong configuration is always an error.
            Exception: what made the measurement fail, where ``on_error="raise"``.
        """
        started = time.perf_counter()
        layers = resolve_layers(model, self.layers)
        try:
            values = self._values(model, layers, forward or self.forward)
        except Exception as error:  # a monitor must not end a run; the cause is told
            if self.on_error == "raise":
                raise
            self._warn_of_failure(error, step)
            values = {layer: dict.fromkeys(self.markers, (math.nan, math.nan)) for layer in layers}
        records = [
            Record(step, epoch, layer, marker, *of_layer[marker])
            for layer, of_layer in values.items()
            for marker in self.markers
        ]
        self.history.append(records)
        alarms = self._judge(list(layers), step, epoch)
        seconds = Record(step, epoch, "", SECONDS, time.perf_counter() - started)
        self.history.append([*alarms, seconds])
        return [*records, *alarms, seconds]

    def state_dict(self) -> dict[str, Any]:
        """History and protocol as plain Python values, for a checkpoint that loads with ``weights_only=True``."""
        return {"protocol": self.protocol, "history": self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any], *, allow_protocol_change: bool = False) -> None:
        """Go on where a saved monitor stopped.

        Args:
            state: from :meth:`state_dict`.
            allow_protocol_change: start a new series where the protocol differs, instead of refusing.

        Raises:
            InputError: another protocol: numbers from two protocols are never joined in one series.
        """
        changed = [name for name, value in self.protocol.items() if state["protocol"].get(name) != value]
        if changed and not allow_protocol_change:
            told = "; ".join(f"{name}: {state['protocol'].get(name)} -> {self.protocol[name]}" for name in changed)
            raise InputError(
                f"the saved geometry was measured by another protocol ({told}). Restore the old settings, "
                "or pass allow_protocol_change=True to start a new series."
            )
        if changed:
            self.history.clear()
        else:
            self.history.load_state_dict(state["history"])
        self.verdicts = {}

    def _values(
        self, model: nn.Module, layers: Mapping[str, Layer], forward: Forward
    ) -> dict[str, dict[str, tuple[float, float]]]:
        """Marker and standard error by layer and name; every process makes the same calls, whatever happens to it."""
        device = _device_of(model)
        metrics = {layer: self._metrics().to(_float64_device(device)) for layer in layers}
        failure: Exception | None = None
        try:
            self._probe_pass(model, layers, metrics, forward)
        except Exception as error:  # noqa: BLE001 - told to the other processes first
            failure = error
        if not _all_processes(failure is None, device):
            raise failure or MeasurementError("the probe pass failed in another process")
        with threads_for(len(self.probe), device):
            return {layer: self._with_errors(metric.compute()) for layer, metric in metrics.items()}

    def _probe_pass(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        metrics: Mapping[str, MetricCollection],
        forward: Forward,
    ) -> None:
        """Run this process's part of the probe set through the model, without a trace, into the metrics."""
        device = _device_of(model)
        classes = torch.tensor(self.probe.classes)
        rank, world_size = _rank_and_world_size()
        with undisturbed(model):
            # In lockstep every process runs as many forward passes as the others: sharded models need that.
            for batch in self.probe.loader(self.batch_size, rank=rank, world_size=world_size, lockstep=True):
                inputs = _to_device(batch.inputs, device)
                mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
                with captured(model, layers, pool=self.pool, mask=mask) as features:
                    forward(model, inputs)
                labels = torch.searchsorted(classes, batch.labels)
                for layer, metric in metrics.items():
                    metric.update(_of_batch(features[layer], layer, len(labels)), labels, ids=batch.ids)

    def _metrics(self) -> MetricCollection:
        """The metrics whose markers are asked for, one for each kind of state."""
        classes = len(self.probe.classes)
        wanted = {MARKERS[name].state for name in self.markers}
        metrics: dict[str, Metric | MetricCollection] = {}
        if "manifolds" in wanted:
            metrics["manifolds"] = ManifoldGeometry(classes, per_class=self.probe.per_class, **self.geometry_options)
        if "spectrum" in wanted:
            metrics["spectrum"] = FeatureSpectrum()
        if "classes" in wanted:
            metrics["classes"] = ClassStructure(classes)
        return MetricCollection(metrics, compute_groups=False)

    def _with_errors(self, computed: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
        return {
            name: (float(computed[name]), float(computed.get(f"{name}_standard_error", math.nan)))
            for name in self.markers
        }

    def _judge(self, layers: list[str], step: int, epoch: int | None) -> list[Record]:
        """Ask the detector about every layer; warn where an alarm is new, that is, not in the history yet."""
        alarms: list[Record] = []
        self.new_alarms = []
        if self.detector is None:
            return alarms
        for layer in layers:
            before = self.history.series(layer, ALARM).values
            verdict = self.verdicts[layer] = judge(self.history, layer, self.watch, self.detector)
            alarms.append(Record(step, epoch, layer, ALARM, float(verdict.declined)))
            if verdict.declined and not (len(before) and before[-1]):
                self.new_alarms.append(verdict)
        if _rank_and_world_size()[0] == 0:
            for verdict in self.new_alarms:
                warnings.warn(explain(verdict), GeometryDeclineWarning, stacklevel=3)
        return alarms

    def _warn_of_failure(self, error: Exception, step: int) -> None:
        """Tell each cause once."""
        cause = f"{type(error).__name__}: {error}"
        if cause not in self._failures:
            self._failures.add(cause)
            warnings.warn(
                f"the geometry could not be measured at step {step}; its values are NaN, training goes on. {cause}",
                GeomonitorWarning,
                stacklevel=3,
            )


def _marker_names(markers: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(markers, str):
        markers = MARKER_GROUPS.get(markers, (markers,))
    for name in markers:
        if name not in MARKERS:
            near = difflib.get_close_matches(name, [*MARKERS, *MARKER_GROUPS])
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(MARKERS)}"
            raise InputError(f"no marker or group is called {name!r}; {hint}")
    return tuple(dict.fromkeys(markers))


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _of_batch(features: Tensor, layer: str, points: int) -> Tensor:
    """Features without the rows that were borrowed to keep processes in lockstep."""
    if points and len(features) != points:
        raise MeasurementError(
            f"layer {layer!r} gave {len(features)} rows for {points} points: its batch does not come first. "
            "Give GeometryMonitor a pool function of (tensor, mask) that returns one row a point."
        )
    return features[:points]


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _float64_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device


def _to_device(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _to_device(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_to_device(value, device) for value in inputs)
    return inputs.to(device) if hasattr(inputs, "to") else inputs


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank_and_world_size() -> tuple[int, int]:
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _distributed() else (0, 1)


def _all_processes(succeeded: bool, device: torch.device) -> bool:
    """Whether all processes succeeded; without this, one that failed would leave the others waiting for ever."""
    if not _distributed():
        return succeeded
    flag = torch.tensor(int(succeeded), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag)
