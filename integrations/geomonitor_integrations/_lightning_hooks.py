"""The hooks of both Lightning namespaces. They translate calls and compute nothing.

``lightning.py`` and ``pytorch_lightning.py`` mix these classes with the ``Callback`` and ``EarlyStopping`` of their
own namespace, because a Trainer of one does not know the callbacks of the other.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from geomonitor.alerts import headline
from geomonitor.capture import resolve_layers
from geomonitor.errors import InputError
from geomonitor.monitor import ALARM, GeometryMonitor
from geomonitor.probe import ProbeSet
from geomonitor.records import Record

HISTORY_FILE = "geometry.csv"
GRADIENT_NORM_EVERY = 20
"""Optimiser steps between two looks at the norm of the gradient, which only explains alarms."""
NEVER = sys.maxsize


class GeometryHooks:
    """Measures the geometry of the representation while a Trainer fits; see ``GeometryCallback``."""

    def __init__(
        self,
        probe: ProbeSet | GeometryMonitor,
        *,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        directory: str | os.PathLike[str] | None = None,
        allow_protocol_change: bool = False,
        **monitor_options: Any,
    ) -> None:
        super().__init__()
        if isinstance(probe, GeometryMonitor) and monitor_options:
            raise InputError(f"give {sorted(monitor_options)} to the GeometryMonitor, not to the callback")
        if every_n_epochs < 1 or (every_n_steps is not None and every_n_steps < 1):
            raise InputError(f"every_n_epochs and every_n_steps count from 1; got {every_n_epochs}, {every_n_steps}")
        self.monitor = probe if isinstance(probe, GeometryMonitor) else GeometryMonitor(probe, **monitor_options)
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.directory = directory
        self.allow_protocol_change = allow_protocol_change
        self._restored = self._resumed = False
        self._gradient_norm: torch.Tensor | None = None
        self._run: Path | None = None
        self.last_step: int | None = None
        """optimiser step of the latest measurement of this fit"""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        _require_namespace(self, trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run:
            return
        resolve_layers(pl_module, self.monitor.layers)  # a layer that does not exist is an error before any training
        self.last_step = None
        run = Path(self.directory or trainer.log_dir or trainer.default_root_dir)  # log_dir is a broadcast: every rank
        if not self._restored and (trainer.global_step == 0 or run != self._run):
            self.monitor.history.clear()  # this object has seen another run
            self.monitor.verdicts = {}
        self._resumed, self._restored, self._run = self._restored, False, run
        if trainer.is_global_zero:
            self.monitor.history.open(run / HISTORY_FILE, self.monitor.protocol)
            _add_text(trainer, "geometry/protocol", json.dumps(self.monitor.protocol, indent=2))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        # The last validation of an epoch, so that callbacks of on_validation_end (checkpoints) see the values.
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_last_batch:
            self._measure_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._measure_epoch(trainer, pl_module)  # epochs without validation

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        due = self.every_n_steps and step % self.every_n_steps == 0
        if (
            due and step and step != self.last_step and not trainer.fast_dev_run
        ):  # the same step comes again under gradient accumulation
            records = self._measure(trainer, pl_module)
            values = {record.key: record.value for record in records}
            # Straight to the loggers: log(on_step=True) drops what is not at a multiple of log_every_n_steps.
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)
            _log(trainer, pl_module, values, on_step=True, on_epoch=False, logger=False)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step % GRADIENT_NORM_EVERY == 0:
            gradients = [p.grad for p in pl_module.parameters() if type(p.grad) is torch.Tensor]
            self._gradient_norm = torch.nn.utils.get_total_norm(gradients)

    def state_dict(self) -> dict[str, Any]:
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state_dict, allow_protocol_change=self.allow_protocol_change)
        self._restored = True

    def _measure_epoch(self, trainer: Any, pl_module: Any) -> None:
        if self.every_n_steps is not None or trainer.fast_dev_run or trainer.global_step == self.last_step:
            return
        if trainer.current_epoch % self.every_n_epochs == 0:
            records = self._measure(trainer, pl_module)
            _log(trainer, pl_module, {r.key: r.value for r in records}, on_step=False, on_epoch=True)
        else:  # after a resume Lightning has forgotten the values that callbacks and schedulers watch
            for record in self.monitor.history:
                trainer.callback_metrics.setdefault(record.key, torch.tensor(0.0)).fill_(record.value)

    def _measure(self, trainer: Any, pl_module: Any) -> list[Record]:
        precision = trainer.precision_plugin

        def forward(model: Any, inputs: Any) -> Any:
            with precision.forward_context():
                return self.monitor.forward(model, precision.convert_input(inputs))

        self.last_step = trainer.global_step
        records = self.monitor.measure(
            pl_module,
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            forward=forward,
            context=self._context(trainer),
        )
        self._resumed = False
        for verdict in self.monitor.new_alarms:
            text = self.monitor.explain(verdict).replace("\n", "\n\n")  # Markdown: a blank line makes a paragraph
            _add_text(trainer, f"geometry/{verdict.layer}/{ALARM}", text)
        return records

    def _context(self, trainer: Any) -> dict[str, float]:
        """Settings of the first optimiser, as of now, and whether the run was resumed since the last measurement."""
        settings = trainer.optimizers[0].param_groups[0] if trainer.optimizers else {}
        told: dict[str, Any] = {"learning_rate": settings.get("lr"), "weight_decay": settings.get("weight_decay")}
        told |= {"gradient_norm": self._gradient_norm, "resumed": self._resumed}
        return {name: float(value) for name, value in told.items() if value is not None}


class StopOnDecline:
    """Ends training on all ranks alike once the geometry of a layer has declined; see ``GeometryEarlyStopping``."""

    def __init__(self, layer: str = "penultimate") -> None:
        self.layer = layer
        self.stopping_reason_message: str | None = None
        self._judged_step: int | None = None
        super().__init__(  # type: ignore[call-arg]
            monitor=f"geometry/{layer}/{ALARM}",
            mode="min",
            divergence_threshold=0.5,  # the alarm is 0 or 1
            patience=NEVER,  # "does not improve" means nothing here
            strict=False,  # no value before the first measurement
            check_finite=False,
            check_on_train_epoch_end=True,
        )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        _require_namespace(self, trainer)
        hooks = _geometry_hooks(trainer)
        if stage == "fit" and not hooks:
            raise InputError("GeometryEarlyStopping needs a GeometryCallback in the same Trainer: add one to callbacks")
        super().setup(trainer, pl_module, stage)  # type: ignore[misc]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        judged = [h.monitor.layers for h in _geometry_hooks(trainer) if h.monitor.detector is not None]
        aliases = [alias for layers in judged for alias in resolve_layers(pl_module, layers)]
        if self.layer not in aliases:
            raise InputError(
                f"no GeometryCallback judges a layer {self.layer!r}, so nothing could ever stop this run: "
                f"GeometryEarlyStopping(layer=...) can watch {aliases or 'none, as no callback has a detector'}"
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        # With every_n_steps an epoch may be the whole run: decide at the measurement, not at the epoch's end. The
        # step is remembered because this callback may stand before the one that measures.
        measured = [h.last_step for h in _geometry_hooks(trainer) if h.every_n_steps and h.last_step is not None]
        if measured and max(measured) != self._judged_step and not trainer.should_stop:
            self._judged_step = max(measured)
            self._run_early_stopping_check(trainer)

    def _run_early_stopping_check(self, trainer: Any) -> None:
        stopping_already = trainer.should_stop
        super()._run_early_stopping_check(trainer)  # type: ignore[misc]
        verdicts = [h.monitor.verdicts.get(self.layer) for h in _geometry_hooks(trainer)]
        declined = [verdict for verdict in verdicts if verdict and verdict.declined]
        if declined and trainer.should_stop and not stopping_already and trainer.is_global_zero:
            self.stopping_reason_message = f"geometry early stopping: {headline(declined[0])}"
            print(self.stopping_reason_message, file=sys.stderr)


def _geometry_hooks(trainer: Any) -> list[GeometryHooks]:
    return [callback for callback in trainer.callbacks if isinstance(callback, GeometryHooks)]


def _log(trainer: Any, pl_module: Any, values: dict[str, float], **how: Any) -> None:
    """On every rank: values logged on rank 0 alone are hidden from EarlyStopping and the like elsewhere."""
    if values and not trainer.barebones:
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1, batch_size=1, **how)


def _add_text(trainer: Any, tag: str, text: str) -> None:
    """To the loggers that show text (TensorBoard)."""
    for logger in trainer.loggers:
        if trainer.is_global_zero and hasattr(logger.experiment, "add_text"):
            logger.experiment.add_text(tag, text, trainer.global_step)


def _require_namespace(callback: Any, trainer: Any) -> None:
    """Refuse a Trainer of the other namespace: it would pass over our early stopping without a word."""
    ours = {base.__module__.split(".")[0] for base in type(callback).__mro__} & {"lightning", "pytorch_lightning"}
    theirs = type(trainer).__module__.split(".")[0]
    if theirs in {"lightning", "pytorch_lightning"} and theirs not in ours:
        raise InputError(
            f"this Trainer comes from {theirs}: import {type(callback).__name__} from geomonitor_integrations.{theirs}"
        )
