"""START HERE. One measurement, from a model to records: probe set, capture, markers, history, verdict.

:class:`GeometryMonitor` knows no training framework. An adapter, or your own loop, calls its ``measure`` now and then;
the monitor runs the probe set through the model without leaving a trace on it, computes the markers, keeps them in its
history and asks a detector whether a marker has declined.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geomonitor._distributed import rank_and_world_size
from geomonitor._warnings import Told, cause_of
from geomonitor.alarms.panel import AUTO, make_panel
from geomonitor.alarms.verdict import Detector, Verdict, judge
from geomonitor.alarms.words import GeometryDeclineWarning, explain, what_changed
from geomonitor.errors import InputError
from geomonitor.features.capture import Layer, Pool, check_pooling, resolve_layers
from geomonitor.features.outputs import head_of
from geomonitor.glue.draws import Dichotomies
from geomonitor.glue.manifolds import Mode, manifold_geometry
from geomonitor.history.history import History
from geomonitor.history.records import ALARM, OVERHEAD, SECONDS, Record
from geomonitor.markers.names import marker_names
from geomonitor.measure.budget import Budget
from geomonitor.measure.measurement import NONFINITE_ROWS, ElsewhereError, Measurement, Plan, change_errors
from geomonitor.measure.passive import ValidationPass, ValidationProbe
from geomonitor.measure.probe_pass import Forward, call, device_of, probe_pass, try_shifts
from geomonitor.measure.snapshot import Snapshot, take_snapshots
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.shifts import BUILT_IN, SHIFT_MARKER, Shift, named_shifts


class GeometryMonitor:
    """Measures the geometry of a model's representation on a fixed probe set, and judges whether it declines.

    Args:
        probe: the held-out, in-distribution points to measure on; or a ``ValidationProbe``, to take them from the
            forward passes of the validation loop.
        layers: where to measure: ``"penultimate"`` (what goes into the last ``nn.Linear``), a module path with
            ``":input"`` or ``":output"``, a list of these, or a dict ``alias -> path``.
        markers: ``"default"``, ``"paper"``, ``"all"`` or names of ``geomonitor.MARKERS``.
        detector: what judges each watched marker, or its name in ``geomonitor.DETECTORS``; ``None`` for no verdicts.
        watch: names of the markers that the detector judges; by default those of
            ``geomonitor.alarms.verdict.DEFAULT_WATCH`` that are measured.
        votes: kinds of watched markers that must decline together. What is left open of these three is filled in by
            :func:`geomonitor.alarms.panel.make_panel`: kinds must agree, where three are measured.
        directions, dichotomies, mode, pairs, seed: protocol of the manifold geometry, see
            :func:`geomonitor.manifold_geometry`.
        pool: how outputs with more than two dimensions become ``(Q, N)``, see :func:`geomonitor.captured`.
        forward: ``forward(model, inputs)`` runs the model on one probe batch; by default ``model(inputs)``, or
            ``model(**inputs)`` where the batch is a dict. Logits ``(B, C)`` are looked for in what it returns (a
            tensor, ``.logits``, ``["logits"]``, the first of a tuple), with the labels as columns; where there are
            none, the markers of the logits are NaN, with one warning.
        batch_size: points in one forward pass of the probe.
        shifts: input shifts under which to measure the accuracy, as ``accuracy_under_<name>``: names of built-in ones
            (``"noise"``, ``"blur"``, ``"brightness"``, ``"contrast"``, ``"rotation"``; images only), or a dict
            ``name -> function`` of the whole batch of inputs. Each costs one more forward pass of the probe set.
        max_overhead: seconds of measuring allowed per second of training, such as 0.02. Where a measurement costs more,
            :meth:`due` lets only every k-th occasion pass; it says so once. None: every occasion.
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
        probe: ProbeSet | ValidationProbe,
        *,
        layers: str | Sequence[str] | Mapping[str, str] = "penultimate",
        markers: str | Sequence[str] = "default",
        detector: Detector | str | None = AUTO,
        watch: Sequence[str] | None = None,
        votes: float | None = None,
        directions: int = 200,
        dichotomies: Dichotomies = "balanced",
        mode: Mode = "joint",
        pairs: int | None = None,
        seed: int = 0,
        pool: Pool = "auto",
        forward: Forward | None = None,
        batch_size: int = 128,
        shifts: Sequence[str] | Mapping[str, Shift] = (),
        max_overhead: float | None = None,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise InputError(f'on_error must be "warn" or "raise"; got {on_error!r}')
        if len(probe.classes) < 2:
            raise InputError(f"a probe set needs at least 2 classes; this one has {probe.classes}")
        self.probe = probe
        self.layers = layers
        self.shifts = named_shifts(shifts)
        names = marker_names(markers, more=[SHIFT_MARKER + name for name in self.shifts])
        self.shifts |= {name: None for name in BUILT_IN if SHIFT_MARKER + name in names and name not in self.shifts}
        self.markers = tuple(dict.fromkeys([*names, *(SHIFT_MARKER + name for name in self.shifts)]))
        if isinstance(self.probe, ProbeSet):
            try_shifts(self.shifts, self.probe)
        elif self.shifts:
            raise InputError("input shifts need forward passes of their own, which a ValidationProbe does not make")
        wanted = None if watch is None else marker_names(watch, more=self.markers)
        panel = make_panel(self.markers, watch=wanted, detector=AUTO if detector is None else detector, votes=votes)
        self.watch, self.votes = panel.watch, panel.votes
        self.detector = None if detector is None else panel.detector
        if not set(self.watch) <= set(self.markers) or (self.detector and not self.watch):
            raise InputError(f"watch must name at least one of the measured markers {self.markers}; got {self.watch}")
        self.geometry_options: dict[str, Any] = {
            "directions": directions, "dichotomies": dichotomies, "mode": mode, "pairs": pairs, "seed": seed
        }  # fmt: skip
        # Tried once on four points: a typo is an error here, not NaN for a whole run.
        manifold_geometry(torch.eye(4), torch.tensor([0, 0, 1, 1]), **self.geometry_options)
        check_pooling(pool)
        if batch_size < 1:
            raise InputError(f"batch_size counts points, from 1; got {batch_size}")
        self.pool = pool
        self.forward = forward or call
        self.budget = Budget(max_overhead)
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
        self.snapshots: dict[str, Snapshot] = {}
        """what figures show of the latest measurement, by layer, where it was asked for; on rank 0 only"""
        self._reference_given = False
        self._latest_points: dict[str, Tensor] = {}
        self._influences: dict[str, Tensor] = {}
        self._points: str | None = None  # fingerprint of the points that a validation loop gave
        self._told = Told()

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
        validation: ValidationPass | None = None,
        context: Mapping[str, float] | None = None,
        snapshots: bool = False,
    ) -> list[Record]:
        """Measure the model now; with several processes, every one of them has to call this.

        Args:
            model: left exactly as it was: modes, random number generators, buffers, hooks.
            step: optimiser steps done so far.
            epoch: epoch, from 0, where there are any. By it the detectors see whether an epoch holds several
                measurements, and take account of it.
            forward: runs the model this once instead of the monitor's own ``forward``, for instance under autocast.
            validation: what :meth:`validation_pass` has collected, if the monitor has a ``ValidationProbe``.
            context: what else is known of this moment, by the names of ``geomonitor.alarms.words.CONTEXT`` (learning
                rate, weight decay, ...): it goes into the history and, if it changed, into the explanation of an alarm.
            snapshots: also put into ``snapshots`` what figures show, from the same points: no second forward pass.

        Returns:
            The new records, which are also appended to ``history``; ``verdicts`` is up to date afterwards. Besides the
            markers, for each layer the number of points with NaN or infinite features, ``nonfinite_rows``, and for the
            whole measurement ``seconds`` and ``overhead`` (NaN where the time before is not known), the same on all
            processes: those of the slowest.

        Raises:
            InputError: a layer that does not exist or is ambiguous; wrong configuration is always an error.
            Exception: what made the measurement fail, where ``on_error="raise"``.
        """
        if isinstance(self.probe, ValidationProbe) == (validation is None):
            raise InputError("a ValidationProbe, and nothing else, is measured by measure(validation=validation_pass)")
        if not len(self.history):
            self._influences = {}  # a new run
        started, now, training_seconds = time.perf_counter(), time.time(), self.budget.training_seconds
        layers = resolve_layers(model, self.layers)
        before, self._influences = self._influences, {}
        self.snapshots = {}
        points: dict[str, tuple[Tensor, Tensor]] = {}
        try:
            values, points = self._values(model, layers, forward or self.forward, validation)
        except Exception as error:  # a monitor must not end a run; the cause is told
            if self.on_error == "raise":
                raise
            if not isinstance(error, ElsewhereError) or rank_and_world_size()[0] == 0:  # else told where it failed
                what = f"the geometry could not be measured at step {step}; its values are NaN, training goes on. "
                self._told.once(f"{what}{type(error).__name__}: {error}", cause_of(error))
            values = {layer: dict.fromkeys([*self.markers, NONFINITE_ROWS], (math.nan, math.nan)) for layer in layers}
        changes = change_errors(self._influences, before)
        self._influences = {**before, **self._influences}  # a measurement that failed is passed over
        records = [
            Record(step, epoch, layer, marker, *of_layer[marker], now, changes.get((layer, marker), math.nan))
            for layer, of_layer in values.items()
            for marker in (*self.markers, NONFINITE_ROWS)
        ]
        told = [Record(step, epoch, "", name, float(value), time=now) for name, value in (context or {}).items()]
        self.history.append([*records, *told])
        alarms = [alarm._replace(time=now) for alarm in self._judge(list(layers), step, epoch)]
        if snapshots and points:
            self.snapshots = take_snapshots(
                points, self.probe.classes, self._told.once, step=step, epoch=epoch, options=self.geometry_options
            )
        seconds = time.perf_counter() - started + (validation.seconds if validation else 0)
        costs = [
            Record(step, epoch, "", marker, value, time=now)
            for marker, value in self._cost(seconds, training_seconds, device_of(model)).items()
        ]
        self.history.append([*alarms, *costs])
        return [*records, *alarms, *costs]

    def due(self) -> bool:
        """Whether to measure now; to be asked on evenly spaced occasions, such as each epoch. See ``max_overhead``."""
        return self.budget.due()

    def validation_pass(self, model: nn.Module, *, dataset_length: int | None = None) -> ValidationPass:
        """Collect points from one validation; for a monitor that has a ``ValidationProbe``.

        Args:
            model: the model that is validated.
            dataset_length: samples in the validation set, if it is read in order and has a length.

        Returns:
            What ``measure(..., validation=...)`` takes, once every batch was run inside its ``batch(...)`` block.

        Raises:
            InputError: the monitor has a probe set of its own; a layer that does not exist.

        >>> import geomonitor as gm
        >>> model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> monitor = gm.GeometryMonitor(gm.ValidationProbe(classes=4, per_class=20))
        >>> validation = monitor.validation_pass(model.eval())
        >>> for batch in [(torch.randn(40, 6), torch.arange(40) % 4)] * 2:
        ...     with validation.batch(batch), torch.no_grad():
        ...         logits = model(batch[0])
        >>> len(monitor.measure(model, step=100, validation=validation)) > 10
        True
        """
        if not isinstance(self.probe, ValidationProbe):
            raise InputError("only a ValidationProbe takes its points from the validation; this monitor has a ProbeSet")
        layers = resolve_layers(model, self.layers)
        return ValidationPass(model, layers, self.probe, pool=self.pool, dataset_length=dataset_length)

    def state_dict(self) -> dict[str, Any]:
        """History, protocol and references in plain Python and tensors: it loads with ``weights_only=True``."""
        return {
            "protocol": self.protocol,
            "history": self.history.state_dict(),
            "references": {layer: points.cpu() for layer, points in self.references.items()},
            "budget": self.budget.state_dict(),
            "points": self._points,
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
            self._points = None
        else:
            self.history.load_state_dict(state["history"])
            self.references = dict(state.get("references", {}))
            self._influences = dict(state.get("influences", {}))
            self._points = state.get("points")
            if "budget" in state:
                self.budget.load_state_dict(state["budget"])
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
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        forward: Forward,
        validation: ValidationPass | None,
    ) -> tuple[dict[str, dict[str, tuple[float, float]]], dict[str, tuple[Tensor, Tensor]]]:
        """Marker and standard error by layer and name, and the points and classes by layer.

        Every process makes the same calls, whatever happens to it.
        """
        if not len(self.history):  # a new run, whose first measurement is the reference
            self.references = self.references if self._reference_given else {}
            self._points = None
        heads = {layer: head_of(model, place, self.probe.classes) for layer, place in layers.items()}
        plan = Plan(
            self.probe.classes,
            self.probe.per_class,
            self.markers,
            tuple(self.shifts),
            self.geometry_options,
        )
        measurement = Measurement(plan, heads, self.references, device_of(model), self._told.once)
        if validation is not None:
            values = measurement.compute_after(lambda: validation.add_to(measurement, known=self._points))
            self._points = validation.points
        else:
            assert isinstance(self.probe, ProbeSet)  # checked by measure
            collect = partial(
                probe_pass, model, layers, self.probe, measurement,
                forward=forward, batch_size=self.batch_size, pool=self.pool, shifts=self.shifts,
            )  # fmt: skip
            values = measurement.compute_after(collect)
        self._latest_points = measurement.latest_points
        self._influences = measurement.influences
        self.references = {**measurement.latest_points, **self.references}
        return values, measurement.points

    def _cost(self, seconds: float, training_seconds: float, device: torch.device) -> dict[str, float]:
        """What a measurement cost, alike on all processes; said once where it is too much for every occasion."""
        seconds, overhead = self.budget.spend(seconds, training_seconds, device)
        if self.budget.every > 1 and rank_and_world_size()[0] == 0:
            self._told.once(
                f"a measurement takes {seconds:.2g} s, more than max_overhead={self.budget.max_overhead:.2%} of the "
                f"training time between two: from now on only every {self.budget.every}-th occasion is measured. This "
                "follows the cost, and is not said again; patience and warm-up of detectors count measurements.",
                "over budget",
            )
        return {SECONDS: seconds, OVERHEAD: overhead}

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
                self._told.once(f"the detector failed, so nothing is judged. {error!r}", cause_of(error))
                alarms.append(Record(step, epoch, layer, ALARM, math.nan))
                continue
            alarms.append(Record(step, epoch, layer, ALARM, float(verdict.declined)))
            if verdict.declined and not (len(before) and before[-1] == 1):
                self.new_alarms.append(verdict)
        if rank_and_world_size()[0] == 0:
            for verdict in self.new_alarms:
                warnings.warn(self.explain(verdict), GeometryDeclineWarning, stacklevel=3)
        return alarms
