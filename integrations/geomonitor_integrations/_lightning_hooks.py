"""The hooks of ``GeometryCallback`` in both Lightning namespaces. They translate calls and compute nothing.

``lightning.py`` and ``pytorch_lightning.py`` mix these classes with the ``Callback`` and ``EarlyStopping`` of their
own namespace, because a Trainer of one does not know the callbacks of the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from geomonitor.alarms.words import CONTEXT
from geomonitor.errors import InputError
from geomonitor.features.capture import resolve_layers
from geomonitor.history.records import SECONDS, Record
from geomonitor.history.runs import HISTORY_FILE
from geomonitor.measure.budget import Budget
from geomonitor.measure.passive import ValidationPass, ValidationProbe
from geomonitor.monitor import GeometryMonitor
from geomonitor.probe.probe_set import ProbeSet
from geomonitor_integrations._lightning_checks import (
    first_loader,
    require_namespace,
    require_whole_model,
    shuffles,
)
from geomonitor_integrations._loggers import LoggerOutput

GRADIENT_NORM_EVERY = 20
"""Optimiser steps between two looks at the norm of the gradient, which only explains alarms."""


class GeometryHooks:
    """Measures the geometry of the representation while a Trainer fits; see ``GeometryCallback``."""

    def __init__(
        self,
        probe: ProbeSet | ValidationProbe | GeometryMonitor,
        *,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        name: str = "",
        directory: str | os.PathLike[str] | None = None,
        allow_protocol_change: bool = False,
        figures_every_n: int | None = None,
        **monitor_options: Any,
    ) -> None:
        super().__init__()
        if isinstance(probe, GeometryMonitor) and monitor_options:
            raise InputError(f"give {sorted(monitor_options)} to the GeometryMonitor, not to the callback")
        if every_n_epochs < 1 or (every_n_steps is not None and every_n_steps < 1):
            raise InputError(f"every_n_epochs and every_n_steps count from 1; got {every_n_epochs}, {every_n_steps}")
        if name and not re.fullmatch(r"\w[\w.-]*", name):  # it becomes part of a file name
            raise InputError(f"name must be of letters, digits, '_', '-' and '.', such as 'train_points'; got {name!r}")
        self.name = name
        self.monitor = probe if isinstance(probe, GeometryMonitor) else GeometryMonitor(probe, **monitor_options)
        self.passive = isinstance(self.monitor.probe, ValidationProbe)
        if self.passive and every_n_steps is not None:
            raise InputError("a ValidationProbe is measured in the validation loop: use every_n_epochs")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.directory = directory
        self.allow_protocol_change = allow_protocol_change
        self.output = LoggerOutput(figures_every_n, name)
        self._restored = self._resumed = False
        self._gradient_norm: torch.Tensor | None = None
        self._run: Path | None = None
        self.last_step: int | None = None
        """optimiser step of the latest measurement of this fit"""
        self._unlogged: list[Record] = []
        self._validation: ValidationPass | None = None
        self._occasion: tuple[int, bool] = (-1, True)  # step of the latest occasion, and whether the budget let it pass
        self._step_seen = 0

    @property
    def state_key(self) -> str:
        """Under this key a checkpoint holds the state: of two callbacks in a Trainer, one at least needs a name."""
        key: str = type(self).__qualname__
        return f"{key}{{'name': {self.name!r}}}" if self.name else key

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        require_namespace(self, trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run:
            return
        resolve_layers(pl_module, self.monitor.layers)  # a layer that does not exist is an error before any training
        require_whole_model(trainer)
        if self.passive and not trainer.enable_validation:
            raise InputError(
                "a ValidationProbe needs a validation loop: give fit a validation loader, or use a ProbeSet"
            )
        self.last_step, self._unlogged, self._validation, self._occasion = None, [], None, (-1, True)
        self._step_seen = trainer.global_step
        run = Path(self.directory or trainer.log_dir or trainer.default_root_dir)  # log_dir is a broadcast: every rank
        if not self._restored and (trainer.global_step == 0 or run != self._run):
            self.monitor.history.clear()  # this object has seen another run
            self.monitor.verdicts = {}
            self.monitor.budget = Budget(self.monitor.budget.max_overhead)
        self.monitor.budget.start()
        self._resumed, self._restored, self._run = self._restored, False, run
        if trainer.is_global_zero:
            self.monitor.history.open(run / prefixed(HISTORY_FILE, self.name, "_"), self.monitor.protocol)
        self.output.start(trainer, self.monitor)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self.passive and self._measures_after(trainer):
            loader = first_loader(trainer)
            if self.monitor.probe.ids is None and shuffles(loader):  # type: ignore[union-attr]
                raise InputError(
                    "the validation loader shuffles, so the position of a sample does not name it: use shuffle=False, "
                    "or give ValidationProbe(ids=function of the batch)"
                )
            length = len(loader.dataset) if hasattr(getattr(loader, "dataset", None), "__len__") else None
            self._validation = self.monitor.validation_pass(pl_module, dataset_length=length)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._validation is not None and dataloader_idx == 0:
            self._validation.open()

    def on_validation_batch_end(  # noqa: PLR0917 - Lightning passes them by position
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._validation is not None and dataloader_idx == 0:
            self._validation.close(batch)
        # Before any on_validation_epoch_end, where averaged weights may be swapped back: the validated ones are
        # measured, whatever the order of the callbacks.
        batches = trainer.num_val_batches
        if (dataloader_idx, batch_idx) == (len(batches) - 1, batches[-1] - 1) and self._measures_after(trainer):
            self._unlogged = self._measure(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        # The last validation of an epoch, so that callbacks of on_validation_end (checkpoints) see the values.
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_last_batch:
            self._measure_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._measure_epoch(trainer, pl_module)  # epochs without validation

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        # A batch may be several steps (manual optimisation) and never end at a multiple of every_n_steps.
        due = self.every_n_steps and step // self.every_n_steps > self._step_seen // self.every_n_steps
        self._step_seen = step
        # The same step comes again under gradient accumulation.
        if due and step and step != self.last_step and not trainer.fast_dev_run and self._within_budget(step):
            self._measure_step(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        # What the budget passed over is made up for where it was the end: nobody wants a run without its last values.
        if self._occasion == (trainer.global_step, False) and not self.passive:
            self._measure_step(trainer, pl_module, in_loop=False)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self._validation is not None:
            self._validation.abandon()
            self._validation = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step % GRADIENT_NORM_EVERY == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            # Sparse gradients and those spread over processes are not looked at: a norm is not worth a run.
            if all(type(grad) is torch.Tensor and grad.layout is torch.strided for grad in gradients):
                self._gradient_norm = torch.nn.utils.get_total_norm(gradients)

    def state_dict(self) -> dict[str, Any]:
        return {**self.monitor.state_dict(), "figures": self.output.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state_dict, allow_protocol_change=self.allow_protocol_change)
        self.output.load_state_dict(state_dict.get("figures", {}))
        self._restored = True

    def _measures_after(self, trainer: Any) -> bool:
        """Whether this validation is one at whose end the geometry is measured."""
        here = trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_last_batch
        return bool(here) and trainer.global_step != self.last_step and self._measures_epoch(trainer)

    def _measures_epoch(self, trainer: Any) -> bool:
        if self.every_n_steps is not None or trainer.fast_dev_run or trainer.current_epoch % self.every_n_epochs:
            return False
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        return self._within_budget(trainer.global_step) or last

    def _within_budget(self, step: int) -> bool:
        """Ask the budget once a step: to ask is to count an occasion."""
        if self._occasion[0] != step:
            self._occasion = (step, self.monitor.due())
        return self._occasion[1]

    def _measure_epoch(self, trainer: Any, pl_module: Any) -> None:
        if self.every_n_steps is not None or trainer.fast_dev_run:
            return
        possible = not self.passive or self._validation is not None
        if trainer.global_step != self.last_step and possible and self._measures_epoch(trainer):
            self._unlogged = self._measure(trainer, pl_module)
        if self._unlogged:
            _log(trainer, pl_module, self._values(self._unlogged), on_step=False, on_epoch=True)
            self._unlogged = []
        elif trainer.global_step != self.last_step:
            # After a resume Lightning has forgotten the values that callbacks and schedulers watch.
            for key, value in self._values(self.monitor.history.latest()).items():
                trainer.callback_metrics.setdefault(key, torch.tensor(0.0)).fill_(value)

    def _measure_step(self, trainer: Any, pl_module: Any, *, in_loop: bool = True) -> None:
        """Measure between two steps, or where the run has ended and modules can log no more."""
        values = self._values(self._measure(trainer, pl_module))
        # Straight to the loggers: log(on_step=True) drops what is not at a multiple of log_every_n_steps.
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if in_loop:
            _log(trainer, pl_module, values, on_step=True, on_epoch=False, logger=False)

    def _measure(self, trainer: Any, pl_module: Any) -> list[Record]:
        precision = trainer.precision_plugin

        def forward(model: Any, inputs: Any) -> Any:
            with precision.forward_context():
                return self.monitor.forward(model, precision.convert_input(inputs))

        self.last_step, validation, self._validation = trainer.global_step, self._validation, None
        records = self.monitor.measure(
            pl_module,
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            forward=forward,
            validation=validation,
            context=self._context(trainer),
            snapshots=self.output.figures_due(len(self.monitor.history.series("", SECONDS).steps)),
        )
        self._resumed = False
        self.output.write(trainer, self.monitor, records)
        return records

    def _context(self, trainer: Any) -> dict[str, float]:
        """Settings of the first optimiser, as of now, and whether the run was resumed since the last measurement."""
        settings = trainer.optimizers[0].param_groups[0] if trainer.optimizers else {}
        told: dict[str, Any] = {"learning_rate": settings.get("lr"), "weight_decay": settings.get("weight_decay")}
        told |= {"gradient_norm": self._gradient_norm, "resumed": self._resumed}
        return {name: float(value) for name, value in told.items() if value is not None}

    def _values(self, records: Iterable[Record]) -> dict[str, float]:
        """Values by the key under which they are logged."""
        logged = [record for record in records if record.layer or record.marker not in CONTEXT]
        return {prefixed(record.key, self.name, "/"): record.value for record in logged}


def prefixed(key: str, name: str, separator: str) -> str:
    """``geometry/fc/nc1`` or ``geometry.csv`` with the name of a callback after its first word."""
    return f"geometry{separator}{name}{key.removeprefix('geometry')}" if name else key


def _log(trainer: Any, pl_module: Any, values: dict[str, float], **how: Any) -> None:
    """On every rank: values logged on rank 0 alone are hidden from EarlyStopping and the like elsewhere."""
    if values and not trainer.barebones:
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1, batch_size=1, **how)
