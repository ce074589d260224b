"""The hooks of ``GeometryCallback`` in both Lightning namespaces: a translation of calls to ``MonitoredRun``.

``lightning.py`` and ``pytorch_lightning.py`` mix these classes with the ``Callback`` and ``EarlyStopping`` of their
own namespace, because a Trainer of one does not know the callbacks of the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from geomonitor import _options
from geomonitor._distributed import Group
from geomonitor.adapter import checked_directory, monitor_of
from geomonitor.alarms.panel import Panel
from geomonitor.explain.at_alarm import Fibers
from geomonitor.features.capture import Pool
from geomonitor.features.isolation import autocast_off
from geomonitor.glue.options import GeometryOptions
from geomonitor.measure.network_coherence import Loss
from geomonitor.measure.passive import ValidationPass
from geomonitor.measure.probe_pass import Forward
from geomonitor.monitor import GeometryMonitor
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.shifts import Shift
from geomonitor.probe.transfer import TransferProbe
from geomonitor.probe.validation_probe import ValidationProbe
from geomonitor.run import MonitoredRun, OnAlarm
from geomonitor_integrations._lightning_checks import (
    first_loader,
    require_namespace,
    require_ordered_validation,
    require_whole_model,
)
from geomonitor_integrations._lightning_probe import Late, LateProbe, placeholder
from geomonitor_integrations._lightning_trainer import (
    fits,
    log_everywhere,
    place_of,
    planned,
    step_of,
    to_loggers,
    training_data,
)
from geomonitor_integrations._loggers import LoggerOutput


class GeometryHooks:
    """Measures the geometry of the representation while a Trainer fits; see ``GeometryCallback``."""

    def __init__(
        self,
        probe: LateProbe | ProbeSet | ValidationProbe | GeometryMonitor,  # in this order for jsonargparse
        *,
        per_class: int = 50,
        layers: str | Sequence[str] | Mapping[str, str] = "penultimate",
        markers: str | Sequence[str] = "default",
        panel: Panel | None = Panel(),
        geometry: GeometryOptions | Mapping[str, Any] = GeometryOptions(),
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        name: str = "",
        directory: str | os.PathLike[str] | None = None,
        allow_protocol_change: bool = False,
        checkpoint_history: bool = True,
        figures_every_n: int | None = None,
        confirm: bool = True,
        expect: Sequence[str] = (),
        on_alarm: Sequence[OnAlarm] | OnAlarm | None = None,  # the sequence first: else the CLI saves no list of them
        pool: Pool = "auto",
        forward: Forward | None = None,
        batch_size: int = 128,
        shifts: Sequence[str] | Mapping[str, Shift] = (),
        truth: TransferProbe | None = None,
        coherence_probe: ProbeSet | None = None,
        coherence_loss: Loss | None = None,
        max_overhead: float | None = 0.05,
        on_error: Literal["warn", "raise"] = "warn",
        process_group: Group = None,
        fibers: Fibers | None = None,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {
            "layers": layers, "markers": markers, "panel": panel, "geometry": geometry, "pool": pool,
            "forward": forward, "batch_size": batch_size, "shifts": shifts, "truth": truth,
            "coherence_probe": coherence_probe, "coherence_loss": coherence_loss,
            "max_overhead": max_overhead, "on_error": on_error, "process_group": process_group,
        }  # fmt: skip
        per_class = _options.whole("per_class", per_class)
        self._late: Late | None = None
        if isinstance(probe, (ProbeSet, ValidationProbe, GeometryMonitor)):
            monitor = monitor_of(probe, **given)
        else:
            self._late, self._given = Late(probe, per_class), given
            monitor = monitor_of(placeholder(), **given | {"shifts": (), "truth": None})
        self._pending: dict[str, Any] | None = None
        self.directory = checked_directory(directory)
        self.run = MonitoredRun(
            monitor,
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            name=name,
            allow_protocol_change=allow_protocol_change,
            checkpoint_history=checkpoint_history,
            confirm=confirm,
            expect=expect,
            on_alarm=on_alarm,
        )
        self.output = LoggerOutput(figures_every_n, name)
        if fibers is not None:
            _options.instance("fibers", fibers, Fibers, "a Fibers(prior, ...) of geomonitor.explain, or None")
        self.fibers: Fibers | None = fibers
        self._passive = isinstance(monitor.probe, ValidationProbe)
        self._validation: ValidationPass | None = None
        self._unlogged: dict[str, float] = {}

    @property
    def monitor(self) -> GeometryMonitor:
        """What measures."""
        return self.run.monitor

    @property
    def state_key(self) -> str:
        """Under this key a checkpoint holds the state: of two callbacks in a Trainer, one at least needs a name."""
        key: str = type(self).__qualname__
        return f"{key}{{'name': {self.run.name!r}}}" if self.run.name else key

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        require_namespace(self, trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run:
            return
        require_whole_model(trainer)
        self._take_probe(trainer)
        if self._passive:
            require_ordered_validation(trainer, self.monitor.probe)
        self._validation, self._unlogged = None, {}
        place = place_of(trainer, self.directory)
        self.run.start(pl_module, **place, step=step_of(trainer, in_batch=False), **planned(trainer))
        self.output.start(trainer, self.monitor)
        if self.fibers is not None and not self.monitor.history.measurements:
            self.fibers.kept = None  # of an earlier run
        if self.run.due_at_start:
            to_loggers(trainer, self._measure(trainer, pl_module, in_batch=False, epoch=None))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.run.look_at_gradients(pl_module.parameters(), trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self._passive or trainer.fast_dev_run or not self.run.due_after_batch(step_of(trainer)):
            return
        values = self._measure(trainer, pl_module, epoch=trainer.current_epoch)
        to_loggers(trainer, values)
        log_everywhere(trainer, pl_module, values, on_step=True, on_epoch=False, logger=False)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self._passive and fits(trainer) and self.run.due_after_validation(step_of(trainer), trainer.current_epoch):
            loader = first_loader(trainer)
            length = len(loader.dataset) if hasattr(getattr(loader, "dataset", None), "__len__") else None
            self._validation = self.run.open_validation(pl_module, dataset_length=length)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._validation is not None and dataloader_idx == 0:
            self._validation.open(batch)

    def on_validation_batch_end(  # noqa: PLR0917 - Lightning passes them by position
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._validation is not None and dataloader_idx == 0:
            self._validation.close(batch)
        # Before any on_validation_epoch_end, where averaged weights may be swapped back: the validated ones are
        # measured, whatever the order of the callbacks.
        batches = trainer.num_val_batches
        if (dataloader_idx, batch_idx) == (len(batches) - 1, batches[-1] - 1) and self._due_in_validation(trainer):
            self._unlogged = self._measure(trainer, pl_module, epoch=trainer.current_epoch)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        # The last validation of an epoch, so that callbacks of on_validation_end (checkpoints) see the values.
        if fits(trainer) and (trainer.is_last_batch or self._unlogged or self._validation is not None):
            self._end_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._end_epoch(trainer, pl_module)  # epochs without validation

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run:
            return
        if self.run.makes_up and not self._passive:
            to_loggers(trainer, self._measure(trainer, pl_module, in_batch=False, epoch=trainer.current_epoch))
        self.run.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self._validation is not None:
            self._validation.abandon()
            self._validation = None

    def state_dict(self) -> dict[str, Any]:
        if self._late is not None and self._pending is not None:
            return self._pending
        return {**self.run.state_dict(), "figures": self.output.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._late is not None:  # its protocol names a probe set that is not there yet
            self._pending = state_dict
            return
        self._load(state_dict)

    def _take_probe(self, trainer: Any) -> None:
        """Make the probe set of the Trainer's data, if it was not given, and load the state that waits for it."""
        if self._late is None:
            return
        probe = self._late.probe_set(trainer)
        if probe.fingerprint != getattr(self.monitor.probe, "fingerprint", None):
            self.run.monitor = GeometryMonitor(probe, **self._given)
        if self._pending is not None:
            self._load(self._pending)
            self._pending = None

    def _load(self, state_dict: dict[str, Any]) -> None:
        self.run.load_state_dict(state_dict)
        self.output.load_state_dict(state_dict.get("figures", {}))

    def _due_in_validation(self, trainer: Any) -> bool:
        """Whether this validation is one at whose end the geometry is measured."""
        if self._passive:
            return self._validation is not None
        return fits(trainer) and bool(trainer.is_last_batch) and self._due_after_epoch(trainer)

    def _due_after_epoch(self, trainer: Any) -> bool:
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        return not trainer.fast_dev_run and self.run.due_after_epoch(trainer.current_epoch, last=last)

    def _end_epoch(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run:
            return
        due = self._validation is not None if self._passive else self._due_after_epoch(trainer)
        if due:  # no batch of the validation was the last one, or there is no validation
            self._unlogged = self._measure(trainer, pl_module, epoch=trainer.current_epoch)
        if self._unlogged:
            log_everywhere(trainer, pl_module, self._unlogged, on_step=False, on_epoch=True)
            self._unlogged = {}
        elif self.run.last_step != step_of(trainer):
            # After a resume Lightning has forgotten the values that callbacks and schedulers watch.
            for key, value in self.run.latest().items():
                trainer.callback_metrics.setdefault(key, torch.tensor(0.0)).fill_(value)

    def _measure(self, trainer: Any, pl_module: Any, *, epoch: int | None, in_batch: bool = True) -> dict[str, float]:
        precision = trainer.precision_plugin

        def forward(model: Any, inputs: Any) -> Any:
            with precision.forward_context(), autocast_off(model):  # in the dtype of the weights, see undisturbed
                return self.monitor.forward(model, precision.convert_input(inputs))

        validation, self._validation = self._validation, None
        values = self.run.measure(
            pl_module,
            step=step_of(trainer, in_batch=in_batch),
            epoch=epoch,
            forward=forward,
            validation=validation,
            optimizers=trainer.optimizers,
            data=training_data(trainer),
            snapshots=self.output.figures_due(self.monitor.history.measurements),
        )
        self.output.write(trainer, self.monitor, self.run.records)
        if self.fibers is not None:
            self._draw_fibers(self.fibers, trainer, pl_module, forward)
        return values

    def _draw_fibers(self, fibers: Fibers, trainer: Any, pl_module: Any, forward: Forward) -> None:
        """At a new alarm the picture, else what a later one needs; a failure is a warning."""
        if trainer.world_size > 1:  # the others would wait for this process until their time is over
            self.output.warn("no fibers are drawn in a run of several processes: use geomonitor fibers afterwards")
            return
        try:
            for verdict in self.monitor.new_alarms:
                found = fibers.draw(pl_module, self.monitor, verdict, forward)
                self.output.fibers(trainer, self.monitor, verdict.layer, found, fibers)
            if not self.run.failed:
                fibers.keep(pl_module, self.monitor)
        except Exception as error:  # noqa: BLE001 - a warning; a picture is not worth a run
            self.output.warn(f"the fibers cannot be drawn. {type(error).__name__}: {error}")
