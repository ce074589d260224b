"""What the callbacks of the training frameworks have in common: their options, when they stop, the state in a file.

An adapter derives from :class:`Adapter` and from the callback of its framework, and translates hooks to calls of the
:class:`geomonitor.MonitoredRun` in ``monitored``.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from geomonitor import _options
from geomonitor._distributed import Group
from geomonitor._warnings import WarnOnce
from geomonitor.alarms.panel import Panel
from geomonitor.errors import InputError
from geomonitor.features.capture import Pool
from geomonitor.features.layers import layer_aliases
from geomonitor.features.routers import find_routers
from geomonitor.glue.options import GeometryOptions
from geomonitor.history.files import moved_from
from geomonitor.history.records import ALARM
from geomonitor.history.run_id import name_in_wandb
from geomonitor.markers.names import marker_names
from geomonitor.markers.routing_layers import ROUTING_MARKERS
from geomonitor.measure.network_coherence import Loss
from geomonitor.measure.probe_pass import Forward
from geomonitor.monitor import GeometryMonitor
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.shifts import Shift
from geomonitor.probe.transfer import TransferProbe
from geomonitor.probe.validation_probe import ValidationProbe
from geomonitor.run import MonitoredRun, OnAlarm

Probe: TypeAlias = "ProbeSet | GeometryMonitor"
STATE_FILE = "geometry.pt"
"""Beside the checkpoints of frameworks that save the state of no callback."""


class Adapter:
    """Options of all callbacks; ``monitored`` is the run that they build.

    Args:
        probe: a held-out, in-distribution ``ProbeSet``, or a ready-made ``GeometryMonitor`` of one, to which the
            options of a monitor are then given.
        layers: as in ``GeometryMonitor``; so are markers, panel, geometry, pool, forward, batch_size, shifts,
            truth, coherence_probe, coherence_loss, max_overhead, on_error and process_group.
        every_n_epochs: epochs between two measurements, from the first epoch on.
        every_n_steps: optimiser steps between two measurements, instead of epochs.
        name: keeps two callbacks of one run apart: keys become ``geometry/<name>/<layer>/<marker>``.
        directory: where ``geometry.csv`` goes.
        allow_protocol_change: start a new series if a saved state was measured by another protocol, not an error.
        checkpoint_history: False: a saved state holds the last record of each marker only.
        on_alarm: functions of (verdict, text), called once for each new alarm on rank 0.
        stop_on_decline: end the training once a layer is in an alarm, and print the reason.

    Raises:
        InputError: an option that does not make sense.

    >>> import geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    >>> adapter = Adapter(gm.ProbeSet.from_dataset(data, per_class=20), every_n_epochs=2)
    >>> adapter.keys(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)))[:2]
    ['geometry/penultimate/capacity', 'geometry/penultimate/dimension']
    """

    def __init__(
        self,
        probe: Probe,
        *,
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
        on_alarm: Sequence[OnAlarm] | OnAlarm | None = None,
        stop_on_decline: bool = False,
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
    ) -> None:
        super().__init__()
        monitor = monitor_of(
            probe, layers=layers, markers=markers, panel=panel, geometry=geometry, pool=pool, forward=forward,
            batch_size=batch_size, shifts=shifts, truth=truth, coherence_probe=coherence_probe,
            coherence_loss=coherence_loss, max_overhead=max_overhead, on_error=on_error, process_group=process_group,
        )  # fmt: skip
        if isinstance(monitor.probe, ValidationProbe):
            raise InputError("this callback takes a ProbeSet; a ValidationProbe works with Lightning or your own loop")
        self.monitored = MonitoredRun(
            monitor, every_n_epochs=every_n_epochs, every_n_steps=every_n_steps, name=name, on_alarm=on_alarm,
            allow_protocol_change=allow_protocol_change, checkpoint_history=checkpoint_history,
        )  # fmt: skip
        self.directory = checked_directory(directory)
        self.stop_on_decline = _options.flag("stop_on_decline", stop_on_decline)
        self.begun = self.stopping = False
        """whether the latest measurement ends the training"""
        self._warn = WarnOnce()

    @property
    def monitor(self) -> GeometryMonitor:
        """What measures."""
        return self.monitored.monitor

    def columns(self, model: nn.Module) -> list[str]:
        """Keys for a table of one row an epoch: of the default markers alone, if all of these are measured."""
        default = marker_names("default")
        chosen = default if set(default) <= set(self.monitor.markers) else self.monitor.markers
        return [key for key in self.keys(model) if key.rpartition("/")[2] in (*chosen, ALARM)]

    def keys(self, model: nn.Module) -> list[str]:
        """Keys of the markers and alarms, for frameworks that ask for the names of all columns in advance."""
        return [
            self.monitored.prefixed(f"geometry/{alias}/{marker}", "/")
            for alias, markers in self._measured(model).items()
            for marker in markers
        ]

    def _measured(self, model: nn.Module) -> dict[str, list[str]]:
        """Names of what is measured, by layer, and by router of a mixture of experts."""
        every = [*self.monitor.markers, ALARM]
        routed = [name for name in every if name in ROUTING_MARKERS]
        routers = find_routers(model, self.monitor.routers) if routed else ()
        layers = layer_aliases(model, self.monitor.layers)
        return dict.fromkeys(layers, every) | dict.fromkeys(routers, routed)

    def require_measured(self, model: nn.Module, key: str | None, evaluates: bool, *, prefix: str = "") -> None:
        """Refuse a key of the geometry that the framework would look for in vain.

        Args:
            model: that will be measured.
            key: what the framework monitors; other keys than those of the geometry are passed over.
            evaluates: whether the framework evaluates, and so looks at all.
            prefix: that the framework may put before its keys.

        Raises:
            InputError: a key that is not measured, or no evaluation.
        """
        plain = (key or "").removeprefix(prefix)
        if plain.startswith("geometry/") and not evaluates:
            raise InputError(f"{plain!r} selects the best model, but this run has no evaluation: give it one")
        if plain.startswith("geometry/") and plain not in self.keys(model):
            raise InputError(f"{plain!r} is not measured. Measured are {', '.join(self.keys(model))}")

    def latest(self, key: str) -> float:
        """The latest number of a key; NaN before the first measurement."""
        return self.monitored.latest().get(key, math.nan)

    def begin(
        self, model: nn.Module, *, step: int, epochs: int | None = None, batches: int | None = None, **how: Any
    ) -> None:
        """Begin or go on in ``directory``, with the state that is in there, unless the training has ``begun``.

        Args:
            model: that will be measured.
            step: optimiser steps done.
            epochs: planned in all, if known.
            batches: of an epoch, if known.
            **how: to measure before the first step, if that is due.
        """
        if not self.begun:
            self.resume(self.directory, step)
            steps = epochs * batches if epochs and batches else None
            self.start(model, self.directory, step=step, epochs=epochs, steps=steps, **how)
        self.begun = True

    def start(
        self, model: nn.Module, folder: str | os.PathLike[str] | None, *, step: int, epochs: int | None = None,
        steps: int | None = None, **how: Any,
    ) -> dict[str, float]:  # fmt: skip
        """Start, see :meth:`geomonitor.MonitoredRun.start`; what to log before the first step, if it is measured."""
        self.monitored.start(model, folder, step=step, epochs=epochs, steps=steps)
        return self.measure(model, step=step, epoch=None, **how) if self.monitored.due_at_start else {}

    def measure_after_batch(self, model: nn.Module, *, step: int, epoch: int, **how: Any) -> dict[str, float]:
        """What to log after a batch, if it is measured: see :meth:`geomonitor.MonitoredRun.measure`."""
        return self.measure(model, step=step, epoch=epoch, **how) if self.monitored.due_after_batch(step) else {}

    def measure_after_epoch(
        self, model: nn.Module, *, step: int, epoch: int, last: bool = False, **how: Any
    ) -> dict[str, float]:
        """What to log after an epoch, if it is measured."""
        due = self.monitored.due_after_epoch(epoch, last=last)
        return self.measure(model, step=step, epoch=epoch, **how) if due else {}

    def measure(self, model: nn.Module, *, step: int, epoch: int | None, **how: Any) -> dict[str, float]:
        """Measure now; then ``stopping`` is whether to end the training, and the reason is printed, on rank 0."""
        values = self.monitored.measure(model, step=step, epoch=epoch, **how)
        name_in_wandb(self.monitored.name, self.monitor.history.whereabouts(), self._warn)
        reason = self.monitored.should_stop if self.stop_on_decline else None
        self.stopping = reason is not None
        if reason and self.monitor.processes.rank == 0:
            print(reason, file=sys.stderr)
        return values

    def state_dict(self) -> dict[str, Any]:
        """All that the run goes on from, for frameworks that save the state of callbacks."""
        return self.monitored.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved run; to be called before the training."""
        self.monitored.load_state_dict(state)

    def save(self, folder: str | os.PathLike[str] | None) -> None:
        """Write the state into a folder; every process may call this, one writes."""
        if folder is not None and self.monitor.processes.rank == 0:
            path = self.monitor.history.beside(self._state_path(folder))
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            torch.save(self.monitored.state_dict(), part)
            os.replace(part, path)  # a run that is killed here leaves the former state whole

    def resume(self, folder: str | os.PathLike[str] | None, step: int) -> None:
        """Read the state from a folder, if the run goes on; to be called before ``monitored.start``.

        Raises:
            InputError: another protocol, unless ``allow_protocol_change``.

        Warns:
            GeomonitorWarning: there is no state: the series starts with this run.
        """
        if not step or folder is None:
            return
        if self._state_path(folder).is_file():
            self.monitored.load_state_dict(torch.load(self._state_path(folder), map_location="cpu", weights_only=True))
        elif self.monitored.last_step is None:
            name = self._state_path(folder).name
            moved = ", ".join(str(path.parent) for path in moved_from(self._state_path(folder)))
            put_back = f" (if it was moved when another run began there, put it back from {moved})" if moved else ""
            where = f"{name} is not in {folder}{put_back}"
            self._warn(
                f"the run goes on at step {step} without the state of its geometry: {where}. A new series starts.", ""
            )

    def _state_path(self, folder: str | os.PathLike[str]) -> Path:
        return Path(folder, self.monitored.prefixed(STATE_FILE, "_"))


def monitor_of(probe: ProbeSet | ValidationProbe | GeometryMonitor, **given: Any) -> GeometryMonitor:
    """A ready-made monitor as it is, or one of a probe and the options of :class:`GeometryMonitor`.

    Raises:
        InputError: options beside a ready-made monitor, or those that the monitor refuses.
    """
    if not isinstance(probe, GeometryMonitor):
        return GeometryMonitor(probe, **given)
    defaults = {p.name: p.default for p in inspect.signature(GeometryMonitor).parameters.values()}
    plain = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }  # YAML has lists
    if changed := sorted(name for name, value in plain.items() if value != defaults[name]):
        raise InputError(f"give {changed} to the GeometryMonitor, not to the callback")
    return probe


def checked_directory(directory: Any) -> str | os.PathLike[str] | None:
    """A path, or None.

    Raises:
        InputError: anything else.
    """
    if directory is not None and not (isinstance(directory, (str, os.PathLike)) and str(directory)):
        raise InputError(f"directory must be a path; got {directory!r}")
    return directory


def require_one_of_a_name(adapters: Iterable[object]) -> None:
    """Refuse two callbacks of one run whose keys and files would be the same.

    Raises:
        InputError: two of a name.
    """
    names = [adapter.monitored.name for adapter in adapters if isinstance(adapter, Adapter)]
    if len(set(names)) < len(names):
        raise InputError(f"two geometry callbacks have the name {max(names, key=names.count)!r}: give one name='...'")


def first_in(callbacks: list[Any], own: Any) -> None:
    """Move a callback to the front of a list, so that all others see what it logs, whatever their order was."""
    callbacks.insert(0, callbacks.pop(next(i for i, callback in enumerate(callbacks) if callback is own)))


def caller(kind: type[object]) -> Mapping[str, Any]:
    """Variables of the nearest method of a class that is calling; its object is ``["self"]``.

    Some frameworks do not show their trainer to its callbacks.

    Raises:
        InputError: none is calling.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), kind):
            return frame.f_locals
        frame = frame.f_back
    raise InputError(f"this callback works in a {kind.__name__} only, and none is calling it")
