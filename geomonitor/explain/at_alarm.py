"""Fibers at an alarm of a run: the weights before, in a file or as one copy, and what is drawn then."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geomonitor import _options
from geomonitor.alarms.verdict import Verdict
from geomonitor.decide.checkpoints import load_checkpoint
from geomonitor.errors import InputError
from geomonitor.explain.checks import checked_inputs, checked_strengths
from geomonitor.explain.comparison import Comparison, compare_fibers
from geomonitor.explain.layer import ToModel, layer_features
from geomonitor.explain.priors import Prior
from geomonitor.features.layers import resolve_layers
from geomonitor.measure.probe_pass import Forward, device_of
from geomonitor.monitor import GeometryMonitor
from geomonitor.probe.probe_set import ProbeSet

STRENGTHS = (3.0, 10.0)
"""Two of the ladder of ``compare_fibers``: half the time, and a rougher interpolation."""


class Fibers:
    """Draws fibers at each alarm of a run; given to a callback as ``fibers=``.

    The weights before come from the file of ``monitor.last_healthy`` if it is there. Otherwise one copy of the
    weights at the latest measurement without a decline is kept in CPU memory, as large as the model's ``state_dict``.
    An alarm interrupts training for the drawing: 4 members of 6 fibers at 14 x 14 take about 20 seconds of one core.

    Args:
        prior: what is plausible; images of the size of the probe set's inputs, in one range with them.
        per_class: representatives of each class.
        members: of each fiber.
        strengths: of the guidance.
        steps: of the reverse process.
        seed: of the noise.
        to_model: from the prior's space to the model's inputs.

    Raises:
        InputError: an option that does not make sense.

    >>> from geomonitor.explain.priors import FlowPrior
    >>> fibers = Fibers(FlowPrior(lambda x, t: x, (1, 14, 14)), members=2)
    """

    def __init__(
        self,
        prior: Prior,
        *,
        per_class: int = 1,
        members: int = 4,
        strengths: Sequence[float] = STRENGTHS,
        steps: int = 50,
        seed: int = 0,
        to_model: ToModel | None = None,
    ) -> None:
        self.prior: Prior = _options.instance(
            "prior", prior, Prior, "a FlowPrior, DiffusionPrior, DiffusersPrior or of the Prior protocol"
        )
        self.per_class, self.members = (
            _options.whole("per_class", per_class),
            _options.whole("members", members, least=2),
        )
        self.strengths = checked_strengths(strengths)
        self.steps, self.seed = _options.whole("steps", steps), _options.whole("seed", seed, least=0)
        self.to_model = None if to_model is None else _options.function("to_model", to_model, "x")
        self.kept: dict[str, Tensor] | None = None
        """weights at the latest measurement without a decline, if no file has them"""

    def keep(self, model: nn.Module, monitor: GeometryMonitor) -> None:
        """Remember the weights if nothing declines, pending declines included; to be called after each measurement."""
        if monitor.last_healthy is not None:
            self.kept = None
        elif not any(verdict.declined or verdict.checks for verdict in monitor.verdicts.values()):
            weights = model.state_dict().items()
            self.kept = {name: each.detach().to("cpu", copy=True) for name, each in weights if isinstance(each, Tensor)}

    def draw(self, model: nn.Module, monitor: GeometryMonitor, verdict: Verdict, forward: Forward) -> Comparison:
        """Compare the fibers of the layer of an alarm, before and now; the model is left as it is.

        Args:
            model: in which the alarm was raised.
            monitor: that raised it.
            verdict: the alarm.
            forward: runs the model on inputs.

        Raises:
            InputError: nothing from before the decline, or a probe set that is none of images of the prior's shape.
            MeasurementError: see :func:`geomonitor.explain.sampling.sample_fibers`.
        """
        earlier = self._before(monitor, verdict)
        probe = checked_probe(monitor.probe)
        pool, places = pool_and_places(probe, self.prior, min(self.per_class, probe.per_class))
        layer = str(resolve_layers(model, monitor.layers)[verdict.layer])
        to_device(self.prior, device_of(model))
        how: dict[str, Any] = {"pool": monitor.pool, "forward": forward, "to_model": self.to_model}
        with layer_features(model, layer, weights=earlier, **how) as before, layer_features(model, layer, **how) as now:
            return compare_fibers(
                before, now, self.prior, pool, places, strengths=self.strengths, per_input=self.members,
                steps=self.steps, seed=self.seed,
            )  # fmt: skip

    def _before(self, monitor: GeometryMonitor, verdict: Verdict) -> Mapping[str, Tensor]:
        healthy = monitor.last_healthy
        early = healthy is not None and (verdict.since_step is None or healthy.step < verdict.since_step)
        if healthy is not None and early and os.path.isfile(healthy.path):
            return load_checkpoint(healthy.path).weights
        if self.kept is None:
            raise InputError(
                "there are no weights from before the decline: it began before the first measurement, or the run was "
                "resumed during it; GeometryCheckpoint keeps them in a file"
            )
        return self.kept


def checked_probe(probe: Any) -> ProbeSet:
    """A probe set whose points can be read.

    Raises:
        InputError: anything else, such as a loader.
    """
    if not isinstance(probe, ProbeSet):
        raise InputError(f"fibers need a ProbeSet, whose points can be read at any time; got {type(probe).__name__}")
    return probe


def pool_and_places(probe: ProbeSet, prior: Prior, per_class: int) -> tuple[Tensor, Tensor]:
    """All points of a probe set ``(Q, *prior.shape)``, and the places ``(R,)`` of the representatives among them.

    These are the first points of each class: the seed of the probe set has put them in order.

    Args:
        probe: has the points class by class.
        prior: of their shape.
        per_class: representatives of each class, at most ``probe.per_class``.

    Raises:
        InputError: points of another shape than the prior's, or none that a prior can have.
    """
    pool = checked_inputs(probe.batch_of(torch.arange(len(probe))).inputs, prior)
    return pool, torch.arange(len(probe)).view(-1, probe.per_class)[:, :per_class].flatten()


def to_device(prior: Prior, device: torch.device) -> None:
    """Move the network of a prior, if it has one that is a module."""
    network = getattr(prior, "network", None)
    if isinstance(network, nn.Module):
        network.to(device)
