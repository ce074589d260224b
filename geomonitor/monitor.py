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

from geomonitor.alerts import GeometryDeclineWarning, explain, what_changed
from geomonitor.capture import Layer, Pool, captured, check_pooling, resolve_layers
from geomonitor.decline import Detector, Verdict, check_votes, judge
from geomonitor.detectors import DETECTORS, DropFromReference
from geomonitor.errors import GeomonitorWarning, InputError, MeasurementError
from geomonitor.isolation import preserved_rng, undisturbed
from geomonitor.markers import MARKER_GROUPS, MARKERS
from geomonitor.markers.dichotomies import Dichotomies
from geomonitor.markers.manifolds import Mode, manifold_geometry
from geomonitor.measurement import Measurement, Plan, change_errors
from geomonitor.outputs import head_of
from geomonitor.probe import ProbeSet
from geomonitor.processes import all_processes, rank_and_world_size
from geomonitor.records import History, Record
from geomonitor.shifts import BUILT_IN, SHIFT_MARKER, Shift, named_shifts, shifted

ALARM = "alarm"
"""Marker name of the verdict: 1 while a watched marker is in decline, 0 otherwise."""
SECONDS = "seconds"
"""Marker name of what a measurement cost, in seconds of wall-clock time; its layer is ""."""

Forward = Callable[[nn.Module, Any], Any]


class ElsewhereError(MeasurementError):
    """Another process could not measure, so no process does."""


class GeometryMonitor:
    """Measures the geometry of a model's representation on a fixed probe set, and judges whether it declines.

    Args:
        probe: the held-out, in-distribution points to measure on.
        layers: where to measure: ``"penultimate"`` (what goes into the last ``nn.Linear``), a module path with
            ``":input"`` or ``":output"``, a list of these, or a dict ``alias -> path``.
        markers: ``"default"``, ``"paper"``, ``"all"`` or names of ``geomonitor.MARKERS``.
        detector: what judges each watched marker, or its name in ``geomonitor.DETECTORS``; ``None`` for no verdicts.
        watch: names of the markers that the detector judges.
        votes: kinds of watched markers that must decline together, see :func:`geomonitor.decline.judge`.
        directions, dichotomies, mode, pairs, seed: protocol of the manifold geometry, see
            :func:`geomonitor.manifold_geometry`.
        pool: how outputs with more than two dimensions become ``(Q, N)``, see :func:`geomonitor.capture.captured`.
        forward: ``forward(model, inputs)`` runs the model on one probe batch; by default ``model(inputs)``, or
            ``model(**inputs)`` where the batch is a dict. Logits ``(B, C)`` are looked for in what it returns (a
            tensor, ``.logits``, ``["logits"]``, the first of a tuple), with the labels as columns; where there are
            none, the markers of the logits are NaN, with one warning.
        batch_size: points in one forward pass of the probe.
        shifts: input shifts under which to measure the accuracy, as ``accuracy_under_<name>``: names of built-in ones
            (``"noise"``, ``"blur"``, ``"brightness"``, ``"contrast"``, ``"rotation"``; images only), or a dict
            ``name -> function`` of the whole batch of inputs. Each costs one more forward pass of the probe set.
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
        detector: Detector | str | None = DropFromReference(),
        watch: Sequence[str] = ("dimension",),
        votes: int = 1,
        directions: int = 200,
        dichotomies: Dichotomies = "balanced",
        mode: Mode = "joint",
        pairs: int | None = None,
        seed: int = 0,
        pool: Pool = "auto",
        forward: Forward | None = None,
        batch_size: int = 128,
        shifts: Sequence[str] | Mapping[str, Shift] = (),
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise InputError(f'on_error must be "warn" or "raise"; got {on_error!r}')
        if len(probe.classes) < 2:
            raise InputError(f"a probe set needs at least 2 classes; this one has {probe.classes}")
        self.probe = probe
        self.layers = layers
        self.shifts = named_shifts(shifts)
        names = _marker_names(markers, more=[SHIFT_MARKER + name for name in self.shifts])
        self.shifts |= {name: None for name in BUILT_IN if SHIFT_MARKER + name in names and name not in self.shifts}
        self.markers = tuple(dict.fromkeys([*names, *(SHIFT_MARKER + name for name in self.shifts)]))
        self._try_shifts()
        self.detector = _detector(detector)
        self.watch = _marker_names(watch, more=self.markers)
        if not set(self.watch) <= set(self.markers) or (self.detector and not self.watch):
            raise InputError(f"watch must name at least one of the measured markers {self.markers}; got {self.watch}")
        check_votes(self.watch, votes)
        self.votes = votes
        self.geometry_options: dict[str, Any] = {
            "directions": directions, "dichotomies": dichotomies, "mode": mode, "pairs": pairs, "seed": seed
        }  # fmt: skip
        # Tried once on four points: a typo is an error here, not NaN for a whole run.
        manifold_geometry(torch.eye(4), torch.tensor([0, 0, 1, 1]), **self.geometry_options)
        check_pooling(pool)
        if batch_size < 1:
            raise InputError(f"batch_size counts points, from 1; got {batch_size}")
        self.pool = pool
        self.forward = forward or _call
        self.batch_size = batch_size
        self.on_error = on_error
        if (check := getattr(self.detector, "check_protocol", None)) is not None:
            check(self.protocol)
        self.history = History()
        self.verdicts: dict[str, Verdict] = {}
        """the latest verdict by layer"""
        self.new_alarms: list[Verdict] = []
        """verdicts that the latest measurement turned to "declined" """
        self.references: dict[str, Tensor] = {}
        """features of the probe by layer, to which the drift is measured; by default those of the first measurement"""
        self._reference_given = False
        self._latest_points: dict[str, Tensor] = {}
        self._influences: dict[str, Tensor] = {}
        self._told: set[str] = set()

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
            **({"shifts": sorted(self.shifts)} if self.shifts else {}),
        }

    def measure(
        self,
        model: nn.Module,
        *,
        step: int,
        epoch: int | None = None,
        forward: Forward | None = None,
        context: Mapping[str, float] | None = None,
    ) -> list[Record]:
        """Measure the model now; with several processes, every one of them has to call this.

        Args:
            model: left exactly as it was: modes, random number generators, buffers, hooks.
            step: optimiser steps done so far.
            epoch: epoch, from 0, where there are any.
            forward: runs the model this once instead of the monitor's own ``forward``, for instance under autocast.
            context: what else is known of this moment, by the names of ``geomonitor.alerts.CONTEXT`` (learning rate,
                weight decay, ...): it goes into the history and, if it changed, into the explanation of an alarm.

        Returns:
            The new records, which are also appended to ``history``; ``verdicts`` is up to date afterwards.

        Raises:
            InputError: a layer that does not exist or is ambiguous; wrong configuration is always an error.
            Exception: what made the measurement fail, where ``on_error="raise"``.
        """
        if not len(self.history):
            self._influences = {}  # a new run
        started, now = time.perf_counter(), time.time()
        layers = resolve_layers(model, self.layers)
        before, self._influences = self._influences, {}
        try:
            values = self._values(model, layers, forward or self.forward)
        except Exception as error:  # a monitor must not end a run; the cause is told
            if self.on_error == "raise":
                raise
            self._warn_of_failure(error, step)
            values = {layer: dict.fromkeys(self.markers, (math.nan, math.nan)) for layer in layers}
        changes = change_errors(self._influences, before)
        self._influences = {**before, **self._influences}  # a measurement that failed is passed over
        records = [
            Record(step, epoch, layer, marker, *of_layer[marker], now, changes.get((layer, marker), math.nan))
            for layer, of_layer in values.items()
            for marker in self.markers
        ]
        told = [Record(step, epoch, "", name, float(value), time=now) for name, value in (context or {}).items()]
        self.history.append([*records, *told])
        alarms = [alarm._replace(time=now) for alarm in self._judge(list(layers), step, epoch)]
        seconds = Record(step, epoch, "", SECONDS, time.perf_counter() - started, time=now)
        self.history.append([*alarms, seconds])
        return [*records, *alarms, seconds]

    def state_dict(self) -> dict[str, Any]:
        """History, protocol and references in plain Python and tensors: it loads with ``weights_only=True``."""
        return {
            "protocol": self.protocol,
            "history": self.history.state_dict(),
            "references": {layer: points.cpu() for layer, points in self.references.items()},
            "influences": dict(self._influences),
        }

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
            self.references, self._influences = {}, {}
        else:
            self.history.load_state_dict(state["history"])
            self.references = dict(state.get("references", {}))
            self._influences = dict(state.get("influences", {}))
        self.verdicts = {}

    def explain(self, verdict: Verdict) -> str:
        """The warning in words, with what the history knows of that time."""
        changed = [] if verdict.since_step is None else what_changed(self.history, verdict.since_step)
        return explain(verdict, changed)

    def set_reference(self, references: Mapping[str, Tensor] | None = None) -> None:
        """Measure the drift from now on to another representation than that of the first measurement.

        Args:
            references: features of the probe by layer, as ``state_dict()["references"]`` of a saved monitor has them;
                by default those of the latest measurement, for instance when it was the best one.
        """
        self.references = dict(self._latest_points if references is None else references)
        self._reference_given = True

    def _values(
        self, model: nn.Module, layers: Mapping[str, Layer], forward: Forward
    ) -> dict[str, dict[str, tuple[float, float]]]:
        """Marker and standard error by layer and name; every process makes the same calls, whatever happens to it."""
        device = _device_of(model)
        if not len(self.history) and not self._reference_given:
            self.references = {}  # a new run, whose first measurement is the reference
        heads = {layer: head_of(model, place, self.probe.classes) for layer, place in layers.items()}
        measurement = Measurement(self._plan, heads, self.references, device, self._tell_once)
        failure: Exception | None = None
        try:
            self._probe_pass(model, layers, measurement, forward)
        except Exception as error:  # noqa: BLE001 - told to the other processes first
            failure = error
        if not all_processes(failure is None, device):
            raise failure or ElsewhereError("the probe pass failed in another process")
        values = measurement.compute()
        self._latest_points = measurement.latest_points
        self._influences = measurement.influences
        self.references = {**measurement.latest_points, **self.references}
        return values

    def _probe_pass(
        self, model: nn.Module, layers: Mapping[str, Layer], measurement: Measurement, forward: Forward
    ) -> None:
        """Run this process's part of the probe set through the model, without a trace, into the measurement."""
        device = _device_of(model)
        rank, world_size = rank_and_world_size()
        with undisturbed(model):
            # In lockstep every process runs as many forward passes as the others: sharded models need that.
            for batch in self.probe.loader(self.batch_size, rank=rank, world_size=world_size, lockstep=True):
                inputs = _to_device(batch.inputs, device)
                mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
                with captured(model, layers, pool=self.pool, mask=mask) as features:
                    outputs = {"": forward(model, inputs)}
                for name, shift in self.shifts.items():
                    outputs[name] = forward(model, shifted(name, shift, inputs, batch.ids))
                measurement.update(features, outputs, batch.labels, batch.ids)

    @property
    def _plan(self) -> Plan:
        return Plan(self.probe.classes, self.probe.per_class, self.markers, tuple(self.shifts), self.geometry_options)

    def _try_shifts(self) -> None:
        """Refuse built-in shifts of what is no image at once, not at the first measurement."""
        if None in self.shifts.values():
            with preserved_rng():
                batch = next(self.probe.loader(1))
                for name, shift in self.shifts.items():
                    if shift is None:
                        shifted(name, None, batch.inputs, batch.ids)

    def _judge(self, layers: list[str], step: int, epoch: int | None) -> list[Record]:
        """Ask the detector about every layer; warn where an alarm is new, that is, not in the history yet."""
        alarms: list[Record] = []
        self.new_alarms = []
        if self.detector is None:
            return alarms
        for layer in layers:
            before = self.history.series(layer, ALARM).values
            try:
                verdict = self.verdicts[layer] = judge(self.history, layer, self.watch, self.detector, self.votes)
            except Exception as error:  # a detector must not end a run either
                if self.on_error == "raise":
                    raise
                self._tell_once(f"the detector failed, so nothing is judged. {error!r}", _cause(error))
                alarms.append(Record(step, epoch, layer, ALARM, math.nan))
                continue
            alarms.append(Record(step, epoch, layer, ALARM, float(verdict.declined)))
            if verdict.declined and not (len(before) and before[-1] == 1):
                self.new_alarms.append(verdict)
        if rank_and_world_size()[0] == 0:
            for verdict in self.new_alarms:
                warnings.warn(self.explain(verdict), GeometryDeclineWarning, stacklevel=3)
        return alarms

    def _warn_of_failure(self, error: Exception, step: int) -> None:
        if isinstance(error, ElsewhereError) and rank_and_world_size()[0] != 0:
            return  # the process that failed tells why, and the first one that it happened
        told = f"the geometry could not be measured at step {step}; its values are NaN, training goes on. "
        self._tell_once(f"{told}{type(error).__name__}: {error}", _cause(error))

    def _tell_once(self, message: str, cause: str | None = None) -> None:
        """Warn of each cause once in the life of this monitor."""
        if (cause or message) not in self._told:
            self._told.add(cause or message)
            warnings.warn(message, GeomonitorWarning, stacklevel=4)


def _marker_names(markers: str | Sequence[str], more: Sequence[str] = ()) -> tuple[str, ...]:
    if isinstance(markers, str):
        markers = MARKER_GROUPS.get(markers, (markers,))
    for name in markers:
        if name not in MARKERS and name not in more:
            near = difflib.get_close_matches(name, [*MARKERS, *MARKER_GROUPS, *more])
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(MARKERS)}"
            raise InputError(f"no marker or group is called {name!r}; {hint}")
    return tuple(dict.fromkeys(markers))


def _detector(detector: Detector | str | None) -> Detector | None:
    if isinstance(detector, str):
        if detector not in DETECTORS:
            raise InputError(f"no detector is called {detector!r}; there are {', '.join(DETECTORS)}")
        return DETECTORS[detector]()
    if detector is not None and not callable(detector):
        raise InputError(f"detector must be a function of a Series, or a name; got {detector!r}")
    return detector


def _cause(error: Exception) -> str:
    """Kind and place of an error: the same cause is told once, also where numbers in its message change."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{type(error).__name__} {trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno)}"


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _to_device(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _to_device(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_to_device(value, device) for value in inputs)
    return inputs.to(device) if hasattr(inputs, "to") else inputs
