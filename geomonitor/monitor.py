"""START HERE. One measurement, from a model to records: probe set, features, markers, history, verdict.

:class:`GeometryMonitor` knows no training framework. Your own loop, or :class:`geomonitor.MonitoredRun`, which all
adapters share, calls its ``measure`` now and then; the monitor runs the probe set through the model without leaving a
trace on it, computes the markers, appends them to its history and judges whether the representation declines.
"""

from __future__ import annotations

import html
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from geomonitor import _options
from geomonitor._distributed import Group, Processes
from geomonitor._warnings import WarnOnce
from geomonitor.alarms.live import LiveJudge
from geomonitor.alarms.panel import Panel
from geomonitor.alarms.phrases import counted
from geomonitor.alarms.status import status_of
from geomonitor.alarms.status_text import Status
from geomonitor.alarms.verdict import Verdict
from geomonitor.alarms.words import explain_in
from geomonitor.errors import InputError
from geomonitor.features.capture import Pool, check_pooling
from geomonitor.features.layers import checked_layers
from geomonitor.features.routers import RouterNames, checked_routers
from geomonitor.glue.options import GeometryOptions
from geomonitor.history.history import History
from geomonitor.history.records import OVERHEAD, SECONDS, Record
from geomonitor.history.saved import SavedCheckpoint
from geomonitor.measure.asked_markers import markers_and_shifts
from geomonitor.measure.budget import Budget
from geomonitor.measure.estimate import Estimate, estimated, log_cost
from geomonitor.measure.measurement import Plan
from geomonitor.measure.network_coherence import Loss, checked_coherence_probe
from geomonitor.measure.passive import ValidationPass
from geomonitor.measure.probe_pass import Forward, call, device_of
from geomonitor.measure.protocol import same_protocol
from geomonitor.measure.series import MeasurementSeries
from geomonitor.measure.snapshot import Snapshot, take_snapshots
from geomonitor.measure.take import HowToRun
from geomonitor.measure.token_options import with_tokens
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.shifts import Shift
from geomonitor.probe.token_probe import TokenProbe
from geomonitor.probe.transfer import TransferProbe, checked_truth
from geomonitor.probe.validation_probe import ValidationProbe


class GeometryMonitor:
    """Measures the geometry of a model's representation on a fixed probe set, and judges whether it declines.

    Args:
        probe: the held-out, in-distribution points to measure on; or a ``ValidationProbe``, to take them from the
            forward passes of the validation loop.
        layers: where to measure: ``"penultimate"`` (what feeds the layer that gives the logits), ``"output"``,
            ``"pooled"``, a module path with ``":input"`` or ``":output"``, a list of these, or a dict
            ``alias -> path``.
        markers: ``"default"``, ``"paper"``, ``"ssl"``, ``"lm"``, ``"moe"``, ``"all"`` or names of
            ``geomonitor.MARKERS``. Of a probe set without labels, ``"default"`` and ``"all"`` are those that need none,
            with those of its views.
        panel: what is judged and how: watched markers, detector, votes; None for no verdicts.
        geometry: protocol of the manifold geometry: directions, dichotomies, mode, seed.
        pool: how outputs with more than two dimensions become ``(Q, N)``, see :func:`geomonitor.captured`;
            ``"tokens"``: points are tokens, of a ``TokenProbe`` or of the sequences of a probe set without labels.
        forward: ``forward(model, inputs)`` runs the model on one probe batch; by default ``model(inputs)``, or
            ``model(**inputs)`` if the batch is a dict. For markers of the logits it returns these, ``(B, C)`` with the
            labels as columns, or an object, mapping or tuple that holds them.
        batch_size: points in one forward pass of the probe.
        shifts: input shifts under which to measure the accuracy, as ``accuracy_under_<name>``: names of built-in ones
            (see ``geomonitor.probe.shifts``), or a dict ``name -> function`` of the inputs of a batch.
        routers: paths of the routers of a mixture of experts, for the markers ``"moe"``, or path to experts per token;
            by default found, see :func:`geomonitor.captured_routing`.
        truth: labelled points of new classes, on which transfer is measured beside the markers; never judged.
        coherence_probe: training points, of which ``network_coherence`` is measured beside the markers, see
            :func:`geomonitor.measure.network_coherence.network_coherence`: two backward passes of 64 points; never
            judged.
        coherence_loss: ``loss(output, label)`` of one point of the ``coherence_probe``, as ``loss`` of that function;
            by default the cross-entropy of the logits. With it the points need no labels.
        max_overhead: seconds of measuring allowed per second of training, beyond the first minute of measuring in a
            run. If measurements cost more, :meth:`due` lets every k-th request pass, with a warning. None: no limit.
        on_error: ``"warn"``: a measurement that fails gives NaN and a warning; or ``"raise"``.
        process_group: the processes that measure together, if not all: a ``torch.distributed`` process group that this
            process is in, or a function that returns it, called once the run has begun.

    Raises:
        InputError: an option of the wrong type, range or name, and what to write.

    >>> import torch, geomonitor as gm
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
        panel: Panel | None = Panel(),
        geometry: GeometryOptions | Mapping[str, Any] = GeometryOptions(),
        pool: Pool = "auto",
        forward: Forward | None = None,
        batch_size: int = 128,
        shifts: Sequence[str] | Mapping[str, Shift] = (),
        routers: RouterNames = None,
        truth: TransferProbe | None = None,
        coherence_probe: ProbeSet | None = None,
        coherence_loss: Loss | None = None,
        max_overhead: float | None = 0.05,
        on_error: Literal["warn", "raise"] = "warn",
        process_group: Group = None,
    ) -> None:
        if not isinstance(probe, (ProbeSet, ValidationProbe)):
            raise InputError(f"probe must be a ProbeSet or a ValidationProbe; got {type(probe).__name__}")
        _options.one_of("on_error", on_error, ("warn", "raise"))
        checked_layers(layers)
        check_pooling(pool)
        probe, self.pool = with_tokens(probe, pool, layers, truth)
        self.probe, self.layers = probe, layers
        self.markers, self.shifts = markers_and_shifts(markers, shifts, probe)
        self.geometry, self.truth = GeometryOptions.of(geometry), checked_truth(truth, probe)
        shifted, self._warn = tuple(self.shifts), WarnOnce()
        views = probe.views if isinstance(probe, ProbeSet) else None
        attributes = probe.attributes if isinstance(probe, ProbeSet) else None
        sequences = probe.item_numbers if isinstance(probe, TokenProbe) else None
        self.coherence_probe = checked_coherence_probe(coherence_probe, coherence_loss)
        self.routers, self.coherence_loss = checked_routers(routers), coherence_loss
        self._plan = Plan(
            probe.classes, probe.per_class, self.markers, shifted, self.geometry, self.truth, views, sequences,
            self.routers, self.coherence_probe, attributes, coherence_loss,
        )  # fmt: skip
        if not isinstance(panel, Panel) and panel is not None:
            raise InputError(f"panel takes a geomonitor.Panel, or None for no verdicts; got {panel!r}")
        self.forward: Forward = call if forward is None else _options.function("forward", forward, "model, inputs")
        self.batch_size = _options.whole("batch_size", batch_size)
        self.on_error: Literal["warn", "raise"] = on_error
        self.processes = Processes(process_group)
        self.budget = Budget(max_overhead, self.processes)
        self._series = MeasurementSeries(probe, layers, self._plan, self.processes, self._warn)
        self.panel = None if panel is None else panel.fitted(self.markers, self.protocol)
        self.reset()

    def __repr__(self) -> str:
        watched = None if self.panel is None else list(self.panel.watch or ())
        measured = f"{counted(self.history.measurements, 'measurement')} so far: {self.status.title}"
        settings = f"{self.probe!r}, layers={self.layers!r}, markers={self.markers}, watch={watched}"
        return f"GeometryMonitor({settings}; {measured})"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>{self.status._repr_html_()}"

    def reset(self) -> None:
        """Start the series of a new run; only references that :meth:`set_reference` gave stay."""
        self.history = History()
        self.judge = LiveJudge(self.panel, self.on_error, self._warn)
        self.snapshots: dict[str, Snapshot] = {}
        """what figures show of the latest measurement, by layer, if they were requested; on rank 0 only"""
        self.budget = Budget(self.budget.max_overhead, self.processes)
        self._series.reset()
        self._cost_is_new = True
        self.last_healthy: SavedCheckpoint | None = None  # from before a decline, if a CheckpointKeeper keeps one

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The latest verdict by layer."""
        return self.judge.verdicts

    @property
    def new_alarms(self) -> list[Verdict]:
        """Verdicts that the latest measurement turned to "declined"."""
        return self.judge.new_alarms

    @property
    def status(self) -> Status:
        """For a person: healthy, not judged yet, notice, alarm or blind; since when, and what to do now."""
        return status_of(self.history, self.verdicts, panel=self.panel, healthy=self.last_healthy)

    @property
    def protocol(self) -> dict[str, Any]:
        """All that makes two measurements comparable: only series with the same protocol may be joined."""
        return self._series.protocol(self._how())

    @property
    def references(self) -> dict[str, Tensor]:
        """Features of the probe by layer, to which the drift is measured; by default of the first measurement."""
        return self._series.references

    def begin(self, model: nn.Module, *, step: int, call: str = "begin") -> None:
        """Check model and data, and that the processes are set up alike; :meth:`measure` does it before all else.

        Args:
            model: that will be measured.
            step: optimiser steps done so far; the same in every process.
            call: what every process has to call now, for the error.

        Raises:
            InputError: what is wrong from the start, in all processes alike.
            MeasurementError: not all processes came; the data, or the settings of a process, have changed since.
        """
        self._series.begin(model, step=step, call=call, how=self._how(), settings=self._settings())

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
            epoch: epoch, from 0, if there are any: so the detectors know whether an epoch holds several measurements.
            forward: runs the model this once instead of the monitor's own ``forward``.
            validation: what :meth:`validation_pass` has collected, if the monitor has a ``ValidationProbe``.
            context: what may explain an alarm, by the names of ``geomonitor.alarms.context.CONTEXT``.
            snapshots: also put into ``snapshots`` what figures show; no second forward pass.

        Returns:
            The new records, which are also in ``history``. Besides the markers, for each layer: ``nonfinite_rows``,
            the points with NaN or infinite features; ``alarm`` and ``notice`` (0 or 1; NaN if the measurement failed);
            ``judged`` (0 while it is too early). Once: ``seconds`` and ``overhead``, those of the slowest process, and
            ``network_coherence`` if there is a ``coherence_probe``.

        Raises:
            InputError: at the first measurement, a layer that does not exist or is ambiguous.
            Exception: what made the measurement fail, if ``on_error="raise"``.
        """
        if isinstance(self.probe, ValidationProbe) == (validation is None):
            raise InputError("a ValidationProbe, and nothing else, is measured by measure(validation=validation_pass)")
        _options.instance("model", model, nn.Module, "a torch.nn.Module")
        if forward is not None:
            _options.function("forward", forward, "model, inputs")
        snapshots = _options.flag("snapshots", snapshots)
        context = _options.instance("context", {} if context is None else context, Mapping, "a mapping of numbers")
        for name, value in context.items():
            _options.instance(f"context[{name!r}]", value, (int, float, np.number), "a number")
        step = _options.whole("step", step, least=0)
        epoch = _options.whole_or_none("epoch", epoch, least=0)
        started, now, training_seconds = time.perf_counter(), time.time(), self.budget.training_seconds
        taken, changes = self._series.take(
            model, step=step, how=self._how(forward), validation=validation, settings=self._settings(),
            on_error=self.on_error,
        )  # fmt: skip
        if self._series.identity_is_new:
            self.history.note("protocol", self.protocol)
        markers = [
            Record(step, epoch, layer, marker, *of_layer[marker], now, changes.get((layer, marker), math.nan))
            for layer, of_layer in taken.values.items()
            for marker in self._plan.names
        ]
        markers += [
            Record(step, epoch, router, marker, *found, now)
            for router, of_router in taken.routing.items()
            for marker, found in of_router.items()
        ]
        markers += [Record(step, epoch, "", marker, *found, now) for marker, found in taken.whole.items()]
        known = [Record(step, epoch, "", name, float(value), time=now) for name, value in context.items()]
        self.history.append([*markers, *known])
        alarms = [r._replace(time=now) for r in self.judge.update(step, epoch, taken.values, changes, self.history)]
        if self.processes.rank == 0:
            self.judge.warn_of_alarms(self.history, self.last_healthy)
        drawn = snapshots and self.processes.rank == 0 and len(self.probe.classes) > 1  # pictures of classes
        shown, how = taken.points if drawn else {}, self.geometry.as_dict()
        self.snapshots = take_snapshots(shown, self.probe.classes, self._warn, step=step, epoch=epoch, options=how)
        seconds = time.perf_counter() - started + (validation.seconds if validation else 0)
        together = device_of(model) if self._series.agreement.reached else None
        seconds, overhead = self.budget.record(seconds, training_seconds, together)
        if self._cost_is_new and self.processes.rank == 0:
            log_cost(seconds, overhead, self.budget.max_overhead)
        self._cost_is_new = False
        costs = [Record(step, epoch, "", n, v, time=now) for n, v in ((SECONDS, seconds), (OVERHEAD, overhead))]
        self.history.append([*alarms, *costs])
        return [*markers, *alarms, *costs]

    def estimate(self, model: nn.Module) -> Estimate:
        """What a measurement costs: makes one, of which nothing is kept. Every process has to call this.

        Args:
            model: left exactly as it was.

        Returns:
            Seconds, those of a forward pass over the probe set, and the memory of the points. The first measurement of
            a process may be slower than later ones (compilation, cold caches).

        Raises:
            InputError: a monitor without a probe set of its own; a layer that does not exist or is not clear.
            Exception: what makes the measurement fail.

        >>> import torch, geomonitor as gm
        >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
        >>> monitor = gm.GeometryMonitor(gm.ProbeSet.from_dataset(data, per_class=20))
        >>> cost = monitor.estimate(nn.Linear(6, 4))
        >>> cost.seconds > cost.forward_seconds, cost.points_bytes == 80 * 6 * 8, len(monitor.history)
        (True, True, 0)
        """
        if not isinstance(self.probe, ProbeSet):
            raise InputError("estimate measures on the probe set, and this monitor takes points from the validation")
        _options.instance("model", model, nn.Module, "a torch.nn.Module")
        series = MeasurementSeries(self.probe, self.layers, self._plan, self.processes, self._warn)
        return estimated(model, self.probe, series, self._how(), self._settings())

    def announce(self, change: str) -> None:
        """Note, in a few words, that the recipe changes on purpose: the reference of every marker starts anew.

        The change is a notice, never an alarm; what declines after the next measurement is judged as before.
        """
        self.judge.announce(change)

    def due(self) -> bool:
        """Whether to measure now, by ``max_overhead``; to be asked at even intervals, such as each epoch."""
        due = self.budget.due()
        if not due and self.processes.rank == 0:
            self._warn(self.budget.acts, "over budget")
        return due

    def validation_pass(self, model: nn.Module, *, dataset_length: int | None = None) -> ValidationPass:
        """Collect points from one validation; for a monitor that has a ``ValidationProbe``.

        Args:
            model: the model that is validated.
            dataset_length: items of the validation set, if it is read in order and has a length.

        Returns:
            What ``measure(..., validation=...)`` takes, once every batch was run inside its ``batch(...)`` block.

        Raises:
            InputError: the monitor has a probe set of its own; a layer that does not exist.

        >>> import torch, geomonitor as gm
        >>> model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> monitor = gm.GeometryMonitor(gm.ValidationProbe(classes=4, per_class=20))
        >>> validation, batch = monitor.validation_pass(model.eval()), (torch.randn(40, 6), torch.arange(40) % 4)
        >>> with validation.batch(batch), torch.no_grad():
        ...     logits = model(batch[0])
        >>> len(monitor.measure(model, step=100, validation=validation)) > 10
        True
        """
        if not isinstance(self.probe, ValidationProbe):
            raise InputError("only a ValidationProbe takes its points from the validation; this monitor has a ProbeSet")
        find = self._series.place_finder(self._how())
        return ValidationPass(
            model, find, self.probe, pool=self.pool, dataset_length=dataset_length, processes=self.processes
        )

    def open_history(self, path: str | os.PathLike[str]) -> None:
        """Write the history to a file from now on, with protocol and panel beside it, see :meth:`History.open`."""
        self.history.open(path, self.protocol, None if self.panel is None else self.panel.to_dict())

    def explain(self, verdict: Verdict) -> str:
        """The warning in words, with what the history knows of that time."""
        _options.instance("verdict", verdict, Verdict, "a Verdict, such as one of monitor.verdicts")
        return explain_in(self.history, verdict, self.last_healthy)

    def set_reference(self, references: Mapping[str, Tensor] | None = None) -> None:
        """Measure the drift from now on to another representation than that of the first measurement.

        Args:
            references: features of the probe by layer, as in ``state_dict()["references"]``; by default the latest.
        """
        self._series.set_reference(references)

    def state_dict(self, *, history: bool = True) -> dict[str, Any]:
        """All that a run goes on from; loads with ``weights_only=True``.

        With ``history=False`` the last record of each marker alone; :meth:`open_history` reads the others.
        """
        return {
            "protocol": self.protocol,
            "history": self.history.state_dict(whole=_options.flag("history", history)),
            "judge": self.judge.state_dict(),
            "budget": self.budget.state_dict(),
            **self._series.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, allow_protocol_change: bool = False) -> None:
        """Continue from a saved monitor.

        Args:
            state: from :meth:`state_dict`.
            allow_protocol_change: start a new series if the protocol differs.

        Raises:
            InputError: another protocol: its numbers are never joined with these.
        """
        allowed = _options.flag("allow_protocol_change", allow_protocol_change)
        _options.instance("state", state, Mapping, "the state_dict() of a monitor")
        if not isinstance(state.get("protocol"), Mapping) or "history" not in state:
            raise InputError(f"state must be the state_dict() of a monitor; got a mapping of {list(state)[:10]}")
        self.reset()
        if not same_protocol(self.protocol, state["protocol"], required=not allowed):
            return
        self.history.load_state_dict(state["history"])
        self._series.load_state_dict(state, state["protocol"], self.history.layers)
        if "budget" in state:
            self.budget.load_state_dict(state["budget"])
        self._cost_is_new = False  # the run has logged it before
        self.judge.load_state_dict(state.get("judge"), self.history)

    def _how(self, forward: Forward | None = None) -> HowToRun:
        return HowToRun(forward or self.forward, self.batch_size, self.pool, self.shifts)

    def _settings(self) -> dict[str, Any]:
        """What has to be alike in all processes, besides the protocol."""
        panel = self.panel and self.panel.to_dict()
        own = {"markers": self.markers, "on_error": self.on_error, "panel": panel}
        return {**own, "max_overhead": self.budget.max_overhead}
