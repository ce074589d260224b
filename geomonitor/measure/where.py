"""Where to measure: found at the first measurement of a series, by one traced forward pass of a few points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from geomonitor._distributed import ALL_PROCESSES, Processes
from geomonitor.errors import InputError
from geomonitor.features.capture import Layers, Pool
from geomonitor.features.heads import LayerError, Located, describe, locate, place_of, require_logits
from geomonitor.features.hooks_run import hooks_run
from geomonitor.features.isolation import undisturbed
from geomonitor.features.layers import (
    PENULTIMATE,
    Layer,
    checked_layers,
    linear_paths,
    plain_modules,
    resolve_in,
)
from geomonitor.features.outputs import outputs_of
from geomonitor.features.reading import Read, Traced, numbers_in_place_of, reading_of
from geomonitor.features.trace import Trace
from geomonitor.features.watched import Written
from geomonitor.measure.masks import mask_of
from geomonitor.measure.probe_pass import Forward, device_of, dtype_of, to_device, to_dtype
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.token_probe import TokenProbe

LOG = logging.getLogger("geomonitor")
"""What was found goes here, at level INFO."""
POINTS = 8
"""Points of the traced pass: few, since all of its tensors are held."""


class Where:
    """The layers of a series, and which output holds the logits that belong to them.

    Args:
        layers: as in ``GeometryMonitor``.
        processes: that measure together; the first one logs what was found.
    """

    def __init__(self, layers: Layers, processes: Processes = ALL_PROCESSES) -> None:
        self._layers = layers
        self._processes = processes
        self._found: dict[str, Layer] = {}
        self._model: tuple[tuple[str, type], ...] = ()
        self.resolved: dict[str, str] = {}
        """alias to layer, and how the model itself pools it, for the protocol"""
        self.began = False
        """whether a measurement of the series was made"""
        self.logits: str | None = None
        """which output holds the logits; None: by the rule of ``logits_in``"""
        self.heads: frozenset[str] = frozenset()
        """aliases of layers whose module is known to give the logits"""
        self.no_heads: dict[str, str] = {}
        """aliases of layers that feed no linear head, whatever takes them, and why; no reason: they feed no logits"""
        self.read: dict[str, Read] = {}
        """heads of which the model reads tokens by a rule, by alias of the layer that feeds them"""
        self.written = Written()
        """what is known of writes of the model to its parameters"""
        self.has_logits = True
        """whether an output is known or may be the logits of the classes"""

    def in_place(self, model: nn.Module) -> dict[str, Layer]:
        """The layers without a forward pass: found before, or by the order of registration.

        Raises:
            InputError: a layer that does not exist; ``"penultimate"`` of a model without linear layers.
        """
        modules = plain_modules(model)
        if self._known(modules):
            return self._found
        found = resolve_in(modules, self._layers)
        last = linear_paths(modules)[-1:]  # may give the logits; of others that were named this is not known
        feed = {n for n, layer in found.items() if layer.automatic or (layer.side == "input" and layer.path in last)}
        self.heads, self.no_heads = frozenset(feed), dict.fromkeys(found.keys() - feed, "")
        self.logits, self.has_logits, self.read = None, True, {}
        return found

    @property
    def ran(self) -> bool:
        """Whether a forward pass has shown the layers; False: it is the order of registration."""
        return bool(self._found)

    def find(
        self,
        model: nn.Module,
        probe: ProbeSet,
        *,
        forward: Forward,
        batch_size: int,
        warn: Callable[[str, str], None],
        pool: Pool = "auto",
    ) -> dict[str, Layer]:
        """The layers in a model; a forward pass only if it is not the model of before.

        Args:
            model: left exactly as it was.
            probe: of which a few points run.
            forward: runs the model on a batch.
            batch_size: the most points in one forward pass.
            warn: takes a warning and a key of its cause.
            pool: how tokens become rows; ``"auto"``: as the model does it.

        Raises:
            InputError: a layer that does not exist.
            LayerError: ``"penultimate"`` is not clear.
        """
        return self.find_in(
            model,
            lambda: probe.batch_of(_some(probe, min(batch_size, POINTS))).inputs,
            probe.logit_columns,
            forward=forward,
            warn=warn,
            pool=pool,
            per_token=isinstance(probe, TokenProbe),
        )

    def find_in(
        self,
        model: nn.Module,
        few: Callable[[], Any],
        columns: Sequence[int],
        *,
        forward: Forward,
        warn: Callable[[str, str], None],
        pool: Pool = "auto",
        per_token: bool = False,
    ) -> dict[str, Layer]:
        """As :meth:`find`, with the inputs of a few points.

        Args:
            model: left exactly as it was.
            few: gives the inputs.
            columns: of the logits, that belong to the classes.
            forward: runs the model on a batch.
            warn: takes a warning and a key of its cause.
            pool: as in :meth:`find`.
            per_token: points are tokens.
        """
        modules = plain_modules(model)
        if self._known(modules):
            return self._found
        resolve_in(modules, self._layers, Layer("", "input", automatic=True))  # names that do not exist
        failure: LayerError | None = None
        located: Located | None = None
        traced: Traced | None = None
        by_rule = any(name == PENULTIMATE and name not in modules for _, name in checked_layers(self._layers))
        cause = "its forward pass does not show it"
        try:
            self.written = Written()
            traced = _traced(model, modules, few(), forward, partial(undisturbed, warn=warn, written=self.written))
            if by_rule:
                located = locate(traced, modules, columns, per_token=per_token, pooled=pool != "auto")
        except LayerError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - if the model cannot run, the measurement reports it
            cause = f"{type(error).__name__}: {error}"
        names_its_head = hasattr(modules[""], "head_path")
        if failure is not None and not names_its_head:
            raise failure
        try:
            found = resolve_in(modules, self._layers, located and located.layer)
        except InputError as error:
            raise LayerError(str(error)) from error
        if by_rule and located is None and not names_its_head:
            last = next(layer for alias, layer in found.items() if layer.automatic)
            if traced is not None:
                require_logits(traced, modules, last, columns, rank=3 if per_token else 2)
        if by_rule and located is None and not (names_its_head or self.began) and self._processes.rank == 0:
            LOG.warning("'penultimate' is %s by the order of registration, not by a run of the model: %s", last, cause)
        self.heads = _by_rule(found)
        if traced is not None:
            self._choose_logits(located, found, modules, traced, per_token=per_token)
            self._found, self._model = found, _signature(modules)
        if located is not None:
            self._report(located, found, warn)
        return found

    def forget(self) -> None:
        """Find the layers anew at the next measurement: the latest one failed, perhaps in another process."""
        self._found, self._model = {}, ()

    def _known(self, modules: Mapping[str, nn.Module]) -> bool:
        return bool(self._found) and self._model == _signature(modules)

    def _choose_logits(
        self,
        located: Located | None,
        found: Mapping[str, Layer],
        modules: Mapping[str, nn.Module],
        traced: Traced,
        *,
        per_token: bool,
    ) -> None:
        rank = 3 if per_token else 2
        passed = traced.trace, modules
        places = {n: place_of(*passed, layer, traced.output, rank) for n, layer in found.items()}
        straight = {n: place_of(*passed, layer, traced.output, rank, straight=True) for n, layer in found.items()}
        self._read_heads(found, straight, modules, traced)
        for alias in found.keys() - self.heads - self.no_heads.keys():
            if places[alias] is not None:
                self.no_heads[alias] = "an activation or a normalisation comes after it"
            elif located is not None or not found[alias].automatic:
                self.no_heads[alias] = ""
        if located is not None:
            self.logits, self.has_logits = located.logits, located.logits is not None
            if not self.has_logits:  # of an encoder or a language model: no row of the head belongs to a class
                self.heads -= (by_rule := frozenset(n for n, layer in found.items() if layer == located.layer))
                self.no_heads |= dict.fromkeys(by_rule, "")
            return
        known = set(places.values()) - {None}
        self.logits, self.has_logits = (known.pop() if len(known) == 1 else None), len(known) < 2

    def _read_heads(
        self,
        found: Mapping[str, Layer],
        straight: Mapping[str, str | None],
        modules: Mapping[str, nn.Module],
        traced: Traced,
    ) -> None:
        """Which heads give the logits as they are, by alias of the layer that feeds them; not reordered or negated."""
        self.no_heads, self.read, heads = {}, {}, set()
        for alias, place in straight.items():
            if place is None:
                continue
            layer, logits = found[alias], outputs_of(traced.output)[place]
            reading = reading_of(traced, modules, layer.path, place)
            call = traced.trace.call_of(layer.path)
            gives = call.gives if call is not None and isinstance(call.gives, Tensor) else None
            rows = gives is not None and gives.ndim == logits.ndim and len(gives) == len(logits)
            if reading is None and rows:
                self.no_heads[alias] = "the logits are not what it gives (another order, sign, size or bias)"
                continue
            heads.add(alias)
            if layer.pool and reading is not None and reading.rule == layer.pool:
                self.read[alias] = Read(Layer(layer.path, "output", pool=layer.pool), reading.exact)
        self.heads = frozenset(heads)

    def _report(self, located: Located, found: Mapping[str, Layer], warn: Callable[[str, str], None]) -> None:
        aliases = [alias for alias, layer in found.items() if layer == located.layer]
        pooled = f", {located.layer.pool}" if located.layer.pool else ""
        resolved = dict.fromkeys(aliases, f"{located.layer}{pooled}")
        if self._processes.rank == 0 and resolved != self.resolved:
            LOG.info("%s", describe(located, aliases[0]))
            if self.began and self.resolved:  # an older checkpoint does not have it
                warn(
                    f"the model has changed, and so has what 'penultimate' is: {self.resolved} before, {resolved} now. "
                    "Numbers before and after are not of one layer. Name a layer that stays, or start a new series "
                    "(a new monitor, or monitor.reset()).",
                    "another layer",
                )
        self.resolved = resolved


def _by_rule(found: Mapping[str, Layer]) -> frozenset[str]:
    return frozenset(alias for alias, layer in found.items() if layer.automatic)


def _some(probe: ProbeSet, points: int) -> Tensor:
    """Points of several classes: with texts of one length alone, rules of pooling could not be kept apart."""
    places = torch.linspace(0, len(probe) - 1, min(points, len(probe))).long()
    return torch.tensor(sorted(set(places.tolist())))


def _traced(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    few: Any,
    forward: Forward,
    isolated: Callable[[nn.Module], AbstractContextManager[None]],
) -> Traced:
    with torch.inference_mode(False):  # a model may write to its inputs
        inputs = to_device(few, device_of(model))
        given = to_dtype(inputs, dtype_of(model))
    with isolated(model), hooks_run(), Trace().of(modules) as trace:
        output = forward(model, given)

    @cache
    def stand(path: str) -> tuple[Tensor, Any] | None:
        with isolated(model), hooks_run(), numbers_in_place_of(modules[path]) as numbers:
            read = forward(model, given)
        return (numbers[0], read) if len(numbers) == 1 else None

    return Traced(trace, output, mask_of(model, inputs), stand)


def _signature(modules: Mapping[str, nn.Module]) -> tuple[tuple[str, type], ...]:
    return tuple((path, type(module)) for path, module in modules.items())
