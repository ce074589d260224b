"""What the processes of a run, and all of its measurements, have to share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from geomonitor._distributed import Processes
from geomonitor._warnings import WarnOnce, cause_of
from geomonitor.errors import InputError
from geomonitor.features.capture import Layers
from geomonitor.features.layers import layer_aliases
from geomonitor.features.routers import find_routers
from geomonitor.features.watched import weights_checksum
from geomonitor.measure.identity import Identity, points_at_once
from geomonitor.measure.measurement import ElsewhereError, Plan
from geomonitor.measure.meeting import DifferenceError, Meeting
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.transfer import TransferProbe
from geomonitor.probe.validation_probe import ValidationProbe


class Setup(NamedTuple):
    """How a process measures."""

    probe: ProbeSet | ValidationProbe
    truth: TransferProbe | None
    layers: Layers
    """where"""
    plan: Plan
    """what"""
    anew: bool
    """whether to look for the layers also if they have been found before"""
    batch_size: int
    settings: Mapping[str, Any]
    """what has to be alike in all processes"""


class Agreement:
    """Compares processes before each measurement, and keeps what a series has to share.

    Args:
        processes: that measure together.
        warn: warns of each cause once.
    """

    def __init__(self, processes: Processes, warn: WarnOnce) -> None:
        self.processes = processes
        self.identity: Identity | None = None
        """of the series, from its first measurement on"""
        self.aliases: tuple[str, ...] = ()
        """of the layers, once they have been found"""
        self.routers: tuple[str, ...] = ()
        """paths of the routers, likewise, if they are measured"""
        self.complete = False
        """whether all processes know the identity"""
        self.reached = False
        """whether the processes agreed the last time"""
        self.warn = warn
        self._meeting = Meeting(processes)
        self._met = False

    def reset(self) -> None:
        """Begin a new series."""
        self.identity, self.aliases, self.routers = None, (), ()

    def reach(self, call: str, step: object, model: nn.Module, setup: Setup) -> None:
        """Meet the other processes; returns or raises in all of them alike.

        Args:
            call: what every process has to call, in words.
            step: of the measurement.
            model: that is measured.
            setup: how.

        Raises:
            InputError: before the first agreement, what differs; a layer that does not exist; a batch size that is not
                that of the series.
            MeasurementError: later, what differs; processes that did not come; data that have changed.
            Exception: what checking raised, if all processes have the same.
        """
        self.reached = False
        failure: Exception | None = None
        settings = {"step": step, "model": type(model).__name__, **setup.settings}
        try:
            self._check(model, setup)
            if self.processes.size > 1 and not self._met:
                settings |= {"parameters": _parameters(model), "weights?": weights_checksum(model)}
        except Exception as error:  # noqa: BLE001 - raised below, once the other processes know
            failure = error
        try:
            may_differ, self.complete = self._meeting.meet(call, settings, failure, self.identity is not None)
        except DifferenceError as error:
            if self._met:
                raise
            raise InputError(str(error)) from failure
        if may_differ and self.processes.rank == 0:
            self.warn(
                f"the weights of the model are other ones on some ranks ({may_differ}): each rank measures its part of "
                "the probe set on its own weights. Wrap the model in DistributedDataParallel, load the same checkpoint "
                "on every rank, or give GeometryMonitor the process_group of the ranks that train one model.",
                "weights differ",
            )
        self._met = self.reached = True

    def report(self, error: Exception, step: int) -> None:
        """Warn of a measurement that failed; of a cause in another process, that one, or the first one, warns.

        Args:
            error: of this process.
            step: of the measurement.
        """
        if self.processes.rank == 0 or not isinstance(error, (ElsewhereError, DifferenceError)):
            what = f"the geometry could not be measured at step {step}; its values are NaN, training goes on"
            self.warn.of_failure(f"{what}. {type(error).__name__}: {error}", cause_of(error))

    def _check(self, model: nn.Module, setup: Setup) -> None:
        """Raise what keeps this process from measuring."""
        if setup.anew or not self.aliases:
            self.aliases = tuple(layer_aliases(model, setup.layers))
        if setup.plan.routed and (setup.anew or not self.routers):
            self.routers = tuple(find_routers(model, setup.plan.routers))
            if both := [name for name in self.aliases if name in self.routers]:
                raise InputError(
                    f"{both[0]!r} is a router and the name of a layer: give the layer another name, "
                    f"layers={{'logits': {both[0]!r}}}"
                )
        for beside in (None if setup.truth is None else setup.truth.probe, setup.plan.coherence_probe):
            if beside is not None:
                beside.check_content()
        if isinstance(setup.probe, ProbeSet):
            setup.probe.check_content()
            now = points_at_once(setup.probe, setup.batch_size, self.processes.size)
            before = now if self.identity is None else self.identity.batch_size or now
            if now != before:
                raise InputError(
                    f"features depend on the other points of a batch, and the series was measured with {before} points "
                    f"in a forward pass, not {now}, so the numbers are not comparable. Give the batch_size "
                    "and the number of processes of then, or start a new series (a new monitor, or monitor.reset())."
                )


def _parameters(model: nn.Module) -> dict[str, Any]:
    """Names and dtypes; the shape of a sharded weight is another one on each rank."""
    dtypes = [str(parameter.dtype) for parameter in model.parameters()]
    names = " ".join(name for name, _ in model.named_parameters())
    digest = hashlib.sha256(names.encode()).hexdigest()[:16]
    return {"number": len(dtypes), "dtypes": sorted(set(dtypes)), "names": digest}
