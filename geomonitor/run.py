"""A training run under a monitor: when to measure, where records go, when to stop, what is saved.

:class:`MonitoredRun` is all that the adapters of the training frameworks share, and it knows none of them. An adapter
translates five things: the source of step and epoch, the place to log a dict of numbers, how to stop, where state is
saved, and how to run the model. In a loop of your own you call it yourself.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geomonitor import _options
from geomonitor._warnings import WarnOnce, cause_of
from geomonitor.alarms.context import CONTEXT, EXPECTABLE, TrainingContext
from geomonitor.alarms.live import LOG
from geomonitor.alarms.outlook import outlook
from geomonitor.alarms.status import of_layer
from geomonitor.alarms.verdict import Verdict
from geomonitor.cadence import Cadence
from geomonitor.errors import InputError
from geomonitor.history.records import ALARM, Record
from geomonitor.history.run_id import is_run_id
from geomonitor.history.runs import HISTORY_FILE
from geomonitor.measure.meeting import AbsentError
from geomonitor.measure.passive import ValidationPass
from geomonitor.measure.probe_pass import Forward
from geomonitor.monitor import GeometryMonitor
from geomonitor.probe.validation_probe import ValidationProbe

OnAlarm = Callable[[Verdict, str], Any]
"""Called with a verdict that is new, and its explanation in words."""


class MonitoredRun(Cadence):
    """Measures a model while it trains; after :meth:`start` it never ends the run (unless ``on_error="raise"``).

    Args:
        monitor: what to measure.
        every_n_epochs: epochs between two measurements, from the first epoch on.
        every_n_steps: optimiser steps between two measurements, instead of epochs.
        name: keeps two monitors of one run apart: keys become ``geometry/<name>/<layer>/<marker>``, the file
            ``geometry_<name>.csv``.
        allow_protocol_change: start a new series if a saved state was measured by another protocol, not an error.
        checkpoint_history: False: a saved state holds the last record of each marker; the rest is in the file.
        confirm: measure once more, half an interval later (after 200 steps at most), if that may make an alarm.
        expect: settings whose changes are planned, of "learning_rate" and "weight_decay": each is announced.
        on_alarm: functions of (verdict, text), called once for each new alarm, on rank 0; a failure is a warning.

    Raises:
        InputError: an option of the wrong type or range.

    >>> import torch, geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    >>> model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> run = gm.MonitoredRun(gm.GeometryMonitor(gm.ProbeSet.from_dataset(data, per_class=20)))
    >>> run.start(model)
    >>> for epoch in range(2):
    ...     ...  # train for an epoch
    ...     if run.due_after_epoch(epoch):
    ...         logged = run.measure(model, step=10 * (epoch + 1), epoch=epoch)
    ...     if run.should_stop:
    ...         break
    Ellipsis
    Ellipsis
    >>> sorted(logged)[:2]
    ['geometry/penultimate/accuracy', 'geometry/penultimate/alarm']
    """

    def __init__(
        self,
        monitor: GeometryMonitor,
        *,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        name: str = "",
        allow_protocol_change: bool = False,
        checkpoint_history: bool = True,
        confirm: bool = True,
        expect: Sequence[str] = (),
        on_alarm: Sequence[OnAlarm] | OnAlarm | None = None,
    ) -> None:
        if not isinstance(monitor, GeometryMonitor):
            raise InputError(f"monitor must be a GeometryMonitor; got {type(monitor).__name__}")
        self.monitor = monitor
        super().__init__(every_n_epochs, every_n_steps, confirm=confirm, within_budget=monitor.due)
        if not isinstance(name, str) or (name and not re.fullmatch(r"\w[\w.-]{0,99}", name)):
            raise InputError(
                "name must be of letters, digits, '_', '-' and '.', at most 100 of them, for it becomes part of a file "
                f"name; for instance 'train_points'; got {name!r}"
            )
        self.name = name
        self.allow_protocol_change = _options.flag("allow_protocol_change", allow_protocol_change)
        self.checkpoint_history = _options.flag("checkpoint_history", checkpoint_history)
        listed = on_alarm if isinstance(on_alarm, Sequence) else [] if on_alarm is None else [on_alarm]
        self.on_alarm = [_options.function("on_alarm", each, "verdict, text") for each in listed]
        self.records: list[Record] = []
        """of the latest measurement"""
        self.after_measurement: list[Callable[[], Any]] = []
        """called after each measurement, in every process"""
        self._warn, self._restored = WarnOnce(), False
        self._context = TrainingContext(self._warn, _options.some_of("expect", expect, EXPECTABLE))
        self._directory: Path | None = None

    def start(
        self,
        model: nn.Module,
        directory: str | os.PathLike[str] | None = None,
        *,
        step: int = 0,
        epochs: int | None = None,
        steps: int | None = None,
        run_id: str | None = None,
        own_folder: bool = False,
    ) -> None:
        """Begin or go on; every process has to call this, before the first batch.

        A state that :meth:`load_state_dict` gave is continued, and so is a run that goes on in the same directory at a
        later step. Everything else is a new run: the monitor starts a new series.

        Args:
            model: what will be measured; the layers must be in it.
            directory: where ``geometry.csv`` goes; None: it is not written.
            step: optimiser steps done so far.
            epochs: planned in all, if known.
            steps: optimiser steps planned in all, if known; by both a run that is too short to be judged is logged.
            run_id: of your logger, such as ``wandb.run.id``, so that its run and the file find one another; by default
                a random one, which a run that goes on keeps.
            own_folder: write into a folder of ``directory`` that is named by the id.

        Raises:
            InputError: a layer that does not exist or is ambiguous; an id that cannot be the name of a folder.
        """
        if run_id is not None and not is_run_id(run_id):
            raise InputError(f"run_id must be of at most 100 letters, digits, '_', '-' and '.'; got {run_id!r}")
        epochs, steps = _options.whole_or_none("epochs", epochs), _options.whole_or_none("steps", steps)
        folder = None if directory is None else _options.path("directory", directory)
        own_folder = _options.flag("own_folder", own_folder)
        step = _options.whole("step", step, least=0)
        try:
            self.monitor.begin(model, step=step, call="start")  # what is wrong is an error before any training
        except AbsentError as error:  # they may be late
            if self.monitor.on_error == "raise":
                raise
            self._warn(str(error), "absent at the start")
        if not self._restored and (step == 0 or folder != self._directory or not len(self.monitor.history)):
            self.monitor.reset()
            self._forget()
            self._context.reset()
            self._look_ahead(epochs, steps)
        self._context.resumed, self._restored, self._directory = self._restored, False, folder
        self._begin(step)
        self.monitor.budget.start()
        history = self.monitor.history
        history.run_id = run_id or history.run_id
        if folder is not None and self.monitor.processes.rank == 0:
            folder = folder / history.run_id if own_folder else folder
            self.monitor.open_history(folder / self.prefixed(HISTORY_FILE, "_"))

    @property
    def due_at_start(self) -> bool:
        """Whether to measure before the first step: the reference of a panel for pretrained weights."""
        panel, passive = self.monitor.panel, isinstance(self.monitor.probe, ValidationProbe)
        return panel is not None and panel.pretrained and not passive and self.last_step is None

    def measure(
        self,
        model: nn.Module,
        *,
        step: int,
        epoch: int | None = None,
        forward: Forward | None = None,
        validation: ValidationPass | None = None,
        optimizers: Iterable[torch.optim.Optimizer] = (),
        data: object = None,
        snapshots: bool = False,
    ) -> dict[str, float]:
        """Measure now; with several processes every one of them has to call this.

        Args:
            model: left exactly as it was.
            step: as in :meth:`GeometryMonitor.measure`; so are epoch, forward and validation.
            epoch: from 0, if there are any.
            forward: runs the model on a batch.
            validation: what :meth:`open_validation` has collected.
            optimizers: those of the run; learning rate and weight decay of the first one explain an alarm.
            data: the training dataset; another class, length or transform is a planned change.
            snapshots: as in :meth:`GeometryMonitor.measure`.

        Returns:
            Numbers to log, by key: ``geometry/<layer>/<marker>``, ``geometry/<layer>/alarm``,
            ``geometry_cost/seconds``, ...

        Raises:
            Exception: what made the measurement fail, if the monitor has ``on_error="raise"``.
        """
        step, epoch = _options.whole("step", step, least=0), _options.whole_or_none("epoch", epoch, least=0)
        self._measured(step, epoch)
        optimizers = list(_options.instance("optimizers", optimizers, Iterable, "a list of optimizers"))
        context = self._context.collect(optimizers)
        for change in self._context.planned_changes(model, optimizers, data, context):
            self.monitor.announce(change)
        records = self.monitor.measure(
            model, step=step, epoch=epoch, forward=forward, validation=validation, context=context, snapshots=snapshots
        )
        self.follow_up.after(step, self.monitor.verdicts.values())
        self._call_on_alarm()
        self.records = records
        for function in self.after_measurement:
            function()
        return self.values_of(records)

    def look_at_gradients(self, parameters: Iterable[Tensor], step: int) -> None:
        """See :meth:`geomonitor.alarms.context.TrainingContext.look_at_gradients`; to be called before each step."""
        self._context.look_at_gradients(parameters, _options.whole("step", step, least=0))

    def open_validation(self, model: nn.Module, *, dataset_length: int | None = None) -> ValidationPass | None:
        """As :meth:`GeometryMonitor.validation_pass`, but a failure is a warning and gives None, unless it is raised.

        Args:
            model: the model that is validated.
            dataset_length: items of the validation set, if it is read in order and has a length.
        """
        try:
            return self.monitor.validation_pass(model, dataset_length=dataset_length)
        except Exception as error:
            if self.monitor.on_error == "raise":
                raise
            self._warn.of_failure(f"the geometry cannot be measured in this validation. {error!r}", cause_of(error))
            return None

    @property
    def failed(self) -> bool:
        """Whether some layer could not be judged at the latest measurement, because that or its detector failed."""
        return any(record.marker == ALARM and math.isnan(record.value) for record in self.records)

    @property
    def should_stop(self) -> str | None:
        """Why to stop, if any layer is in an alarm now, in the words of its status; else None."""
        return self.stop_reason()

    def stop_reason(self, layer: str | None = None) -> str | None:
        """As :attr:`should_stop`, for one layer."""
        for alias, verdict in self.monitor.verdicts.items():
            if verdict.declined and layer in (None, alias):
                return f"geometry early stopping: {of_layer(self.monitor.history, alias, verdict).headline}"
        return None

    def finish(self) -> None:
        """End the run; warns if nothing was measured, with the likely reason."""
        if not self.monitor.history.measurements and self._directory is not None and self.monitor.processes.rank == 0:
            by_epoch = f"every_n_epochs={self.every_n_epochs}, and no epoch that counts came to its end"
            why = f"every_n_steps={self.every_n_steps} was never reached" if self.every_n_steps else by_epoch
            self._warn(
                f"the geometry was not measured once in this run: {why}. For streams and short runs give "
                "every_n_steps a smaller number.",
                "nothing measured",
            )

    def latest(self) -> dict[str, float]:
        """The latest numbers by key, also those of a restored state."""
        return self.values_of(self.monitor.history.latest())

    def values_of(self, records: Iterable[Record]) -> dict[str, float]:
        """Numbers to log, by key; what only explains an alarm is left out."""
        logged = [record for record in records if record.layer or record.marker not in CONTEXT]
        return {self.prefixed(record.key, "/"): record.value for record in logged}

    def prefixed(self, key: str, separator: str) -> str:
        """``geometry/fc/nc1`` or ``geometry.csv`` with the name of this run's monitor after the first word."""
        first, rest = re.split(r"(?=[/.])", key, maxsplit=1)
        return f"{first}{separator}{self.name}{rest}" if self.name else key

    def state_dict(self) -> dict[str, Any]:
        """The state of the monitor, and when it measured last: loads with ``weights_only=True``."""
        run = {**self._cadence_state(), "recipe": self._context.recipe}
        return {**self.monitor.state_dict(history=self.checkpoint_history), "run": run}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved run; to be called before :meth:`start`.

        Raises:
            InputError: another protocol, unless ``allow_protocol_change``.
        """
        _options.instance("state", state, Mapping, "the state_dict() of a MonitoredRun")
        self.monitor.load_state_dict(dict(state), allow_protocol_change=self.allow_protocol_change)
        run, self._restored = state.get("run") or {}, True
        self._load_cadence(run)
        self._context.recipe = dict(run.get("recipe", {}))

    def _look_ahead(self, epochs: int | None, steps: int | None) -> None:
        """Log at the start from when the run can be judged."""
        planned = self.planned_measurements(epochs, steps)
        if self.monitor.panel is None or self.monitor.processes.rank != 0:
            return
        found = outlook(self.monitor.panel, None if planned is None else planned + self.due_at_start, steps)
        if found is not None:
            LOG.log(logging.INFO if found[0] else logging.WARNING, found[1])

    def _call_on_alarm(self) -> None:
        for verdict in self.monitor.new_alarms if self.monitor.processes.rank == 0 else ():
            for function in self.on_alarm:
                try:
                    function(verdict, self.monitor.explain(verdict))
                except Exception as error:  # noqa: BLE001 - a message that fails is not worth a run
                    self._warn(f"on_alarm failed. {error!r}", cause_of(error))
