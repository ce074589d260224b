"""Measurements of one series, one after the other: what they share, and what each leaves to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from geomonitor import _options
from geomonitor._distributed import Processes
from geomonitor._warnings import WarnOnce
from geomonitor.errors import InputError
from geomonitor.features.heads import LayerError
from geomonitor.measure.agreement import Agreement, Setup
from geomonitor.measure.identity import Identity
from geomonitor.measure.measurement import Plan, change_errors
from geomonitor.measure.passive import ValidationPass
from geomonitor.measure.probe_pass import call as default_forward
from geomonitor.measure.protocol import protocol_of
from geomonitor.measure.take import HowToRun, Known, Taken, nothing_taken, take_measurement
from geomonitor.measure.tokens import TokenLength
from geomonitor.measure.validation_batch import FindPlace, find_place
from geomonitor.measure.where import Where
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.validation_probe import ValidationProbe


class MeasurementSeries:
    """Measures a model now and then; all measurements have one protocol.

    Args:
        probe: the points.
        layers: where to measure, as in ``GeometryMonitor``.
        plan: what to measure.
        processes: that measure together.
        warn: warns of each cause once.
    """

    def __init__(
        self,
        probe: ProbeSet | ValidationProbe,
        layers: str | Sequence[str] | Mapping[str, str],
        plan: Plan,
        processes: Processes,
        warn: WarnOnce,
    ) -> None:
        self.references: dict[str, Tensor] = {}
        """features of the probe by layer, to which the drift is measured; by default of the first measurement"""
        self.where = Where(layers, processes)
        self.agreement = Agreement(processes, warn)
        self.identity_is_new = False
        """whether the latest measurement found what the protocol did not know before"""
        self._length = TokenLength()
        self._probe, self._layers, self._plan, self._warn = probe, layers, plan, warn
        self._reference_given = self._started = False
        self.reset()

    def reset(self) -> None:
        """Begin a new series; only references that :meth:`set_reference` gave stay."""
        if not self._reference_given:
            self.references = {}
        self.agreement.reset()
        self.where.began = False
        self._latest_points: dict[str, Tensor] = {}
        self._influences: dict[str, Tensor] = {}
        self._points: str | None = None  # fingerprint of the points of a validation loop

    def protocol(self, how: HowToRun) -> dict[str, Any]:
        """All that makes two measurements comparable."""
        forward = None if how.forward is default_forward else how.forward
        found = protocol_of(self._probe, self._layers, how.pool, self._plan, forward=forward)
        found |= {"resolved": dict(self.where.resolved)} if self.where.resolved else {}
        return found | (self.agreement.identity.as_protocol() if self.agreement.identity else {})

    def begin(self, model: nn.Module, *, step: int, call: str, how: HowToRun, settings: Mapping[str, Any]) -> None:
        """Check model and data, and that the processes are set up alike.

        Args:
            model: that will be measured.
            step: optimiser steps done so far; the same in every process.
            call: what every process has to call now, for the error.
            how: how the probe set is run.
            settings: what else has to be alike in all processes.

        Raises:
            InputError: what is wrong from the start, in all processes alike.
            MeasurementError: not all processes came; the data, or the settings of a process, have changed since.
        """
        known = {name: value for name, value in self.protocol(how).items() if name != "resolved"}  # found later by some
        alike = {**known, "batch size": how.batch_size, **settings}
        truth, anew = self._plan.truth, call != "measure"
        setup = Setup(self._probe, truth, self._layers, self._plan, anew, how.batch_size, alike)
        self.agreement.reach(f"{call}(step={step})", step, model, setup)
        if call == "start":
            # With several processes the forward pass may be a collective call, which belongs into the measurement.
            if isinstance(self._probe, ProbeSet) and self.agreement.processes.size == 1:
                self.where.find(model, self._probe, forward=how.forward, batch_size=how.batch_size, warn=self._warn)
            self._started = True

    def take(
        self,
        model: nn.Module,
        *,
        step: int,
        how: HowToRun,
        validation: ValidationPass | None,
        settings: Mapping[str, Any],
        on_error: Literal["warn", "raise"],
    ) -> tuple[Taken, dict[tuple[str, str], float]]:
        """Measure; a measurement that fails is NaN throughout, with a warning, unless ``on_error="raise"``.

        Args:
            model: left exactly as it was.
            step: optimiser steps done so far.
            how: how the probe set is run.
            validation: the points, if they come from the validation loop.
            settings: as in :meth:`begin`.
            on_error: what a failure does.

        Returns:
            What was taken, and the standard error of the change since the measurement before, by layer and marker.

        Raises:
            InputError: before the first measurement, what is wrong from the start.
            Exception: what failed, if ``on_error="raise"``.
        """
        source = self._probe if isinstance(self._probe, ProbeSet) else validation
        assert source is not None  # the caller checks it
        agreement, self.identity_is_new = self.agreement, False
        known = Known(self.references, self._points, agreement.identity)
        try:
            self.begin(model, step=step, call="measure", how=how, settings=settings)
            taken = take_measurement(
                model, self.where, source, self._plan, how=how, known=known, agreement=agreement, length=self._length
            )
        except Exception as error:  # a monitor must not end a run; the cause is logged
            self.where.forget()  # in all processes alike, or one of them would run a traced pass alone
            unclear = isinstance(error, LayerError) and not self._started and agreement.identity is None
            if on_error == "raise" or unclear or (isinstance(error, InputError) and not agreement.reached):
                raise
            agreement.report(error, step)
            return nothing_taken(agreement.aliases, self._plan, known, agreement.routers), {}
        self._latest_points, self._points, self.where.began = taken.latest_points, taken.fingerprint, True
        self.identity_is_new = agreement.identity != taken.identity
        agreement.identity = taken.identity
        self.references = {**taken.latest_points, **self.references}
        changes = change_errors(taken.influences, self._influences)
        self._influences = {**self._influences, **taken.influences}  # a measurement that failed is passed over
        return taken, changes

    def place_finder(self, how: HowToRun) -> FindPlace:
        """What finds where to measure in the forward passes of a validation loop.

        Args:
            how: how the model is run.
        """
        plan = self._plan
        return partial(
            find_place, self.where, columns=plan.classes, forward=how.forward, warn=self._warn, pool=how.pool,
            routers=plan.routers if plan.routed else (),
        )  # fmt: skip

    def set_reference(self, references: Mapping[str, Tensor] | None) -> None:
        """See :meth:`geomonitor.GeometryMonitor.set_reference`."""
        given = self._latest_points if references is None else references
        _options.instance("references", given, Mapping, "a mapping of layers to features (Q, N)")
        for layer, features in given.items():
            _options.instance(f"references[{layer!r}]", features, Tensor, "a tensor (Q, N)")
        self.references, self._reference_given = dict(given), True

    def state_dict(self) -> dict[str, Any]:
        """What a later measurement needs, on the CPU."""
        references = {layer: points.cpu() for layer, points in self.references.items()}
        return {"references": references, "points": self._points, "influences": dict(self._influences)}

    def load_state_dict(self, state: Mapping[str, Any], protocol: Mapping[str, Any], aliases: tuple[str, ...]) -> None:
        """Continue from a saved series.

        Args:
            state: from :meth:`state_dict`.
            protocol: of the saved series.
            aliases: of its layers.
        """
        self.agreement.identity, self.agreement.aliases = Identity.of(protocol), aliases
        self.where.resolved, self.where.began = dict(protocol.get("resolved", {})), True
        self.references, self._influences = dict(state.get("references", {})), dict(state.get("influences", {}))
        self._points = state.get("points")
