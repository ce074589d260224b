"""What goes to the loggers of a Trainer beside the scalars: layout, figures, status, alarms, the protocol.

Only rank 0 writes, and nothing that fails here ends a run: there is one warning.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomonitor import _options
from geomonitor._random import preserved_rng
from geomonitor.alarms.status import of_layer
from geomonitor.alarms.status_text import Status
from geomonitor.errors import GeomonitorWarning
from geomonitor.explain.at_alarm import Fibers
from geomonitor.explain.comparison import Comparison
from geomonitor.history.records import ALARM, Record
from geomonitor.measure.snapshot import Snapshot
from geomonitor.monitor import GeometryMonitor
from geomonitor_integrations._logger_kinds import Sink, has_pictures, sink_of

FIGURES_EVERY_N = 10
"""The four figures of a layer cost about three quarters of a small measurement (300 points, 256 units, 200 directions),
so that every tenth adds 7 % to it. The first one is always drawn: it is the reference."""


class LoggerOutput:
    """Writes what a measurement gives to all loggers of a Trainer that can show it.

    Args:
        figures_every_n: measurements between two sets of figures, from the first one on; 0 for none; by default every
            tenth if matplotlib is installed.
        name: of the callback; it stands before every layer.

    Raises:
        InputError: a negative number.
    """

    def __init__(self, figures_every_n: int | None, name: str = "") -> None:
        self.figures_every_n = _options.whole_or_none("figures_every_n", figures_every_n, least=0)
        self._name = name
        self.references: dict[str, Snapshot] = {}
        """the first snapshot of the run by layer: later spectra are drawn against it"""
        self._draws = False
        self._begun: set[str] = set()
        self._warned: set[str] = set()

    def start(self, trainer: Any, monitor: GeometryMonitor) -> None:
        """Prepare for a fit; every rank has to call this."""
        self._begun = set()
        # Whether points are held for figures must be the same everywhere, or the ranks would wait for each other.
        self._draws = trainer.strategy.broadcast(self._can_draw(trainer))
        for name, values in (("protocol", monitor.protocol), ("run", monitor.history.whereabouts())):
            self._each(trainer, partial(_write_settings, tag=f"geometry/{self._named(name)}", values=values))

    def figures_due(self, measured: int) -> bool:
        """Whether the next measurement is drawn; the same on all ranks.

        Args:
            measured: measurements of this run so far.
        """
        if not measured:
            self.references = {}  # a new run
        every = FIGURES_EVERY_N if self.figures_every_n is None else self.figures_every_n
        return self._draws and measured % every == 0

    def write(self, trainer: Any, monitor: GeometryMonitor, records: Sequence[Record]) -> None:
        """What a measurement gave, new alarms and snapshots included."""
        if not trainer.is_global_zero or not trainer.loggers:
            return
        step = trainer.global_step
        with preserved_rng():
            named = [record._replace(layer=self._named(record.layer)) for record in records]
            self._each(trainer, lambda sink: self._write_curves(sink, named, step))
            status = monitor.status
            self._each(
                trainer, partial(_write_status, tag=f"geometry/{self._named('status')}", status=status, step=step)
            )
            for verdict in monitor.new_alarms:
                tag = f"geometry/{self._named(verdict.layer)}/{ALARM}"
                alarm = of_layer(monitor.history, verdict.layer, verdict, healthy=monitor.last_healthy)
                self._each(trainer, partial(_write_alarm, tag=tag, alarm=alarm, step=step))
            if monitor.snapshots:
                self._draw(trainer, monitor.snapshots, step)

    def fibers(self, trainer: Any, monitor: GeometryMonitor, layer: str, found: Comparison, fibers: Fibers) -> None:
        """The picture of the fibers at an alarm, also as a file beside the history."""
        from geomonitor.plots.drawing import pixels
        from geomonitor.plots.fibers import plot_fibers

        figure = plot_fibers(found, low=fibers.prior.low, high=fibers.prior.high)
        if monitor.history.path is not None:
            figure.savefig(monitor.history.path.with_name("fibers.png"), dpi=110)
        tag, picture = f"geometry/{self._named(layer)}/fibers", pixels(figure)
        self._each(trainer, partial(_write_picture, tag=tag, picture=picture, step=trainer.global_step))

    def state_dict(self) -> dict[str, Any]:
        """The references in plain Python and tensors."""
        return {layer: snapshot.state_dict() for layer, snapshot in self.references.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved references."""
        self.references = {layer: Snapshot(**snapshot) for layer, snapshot in state.items()}

    def _named(self, layer: str) -> str:
        return "/".join(part for part in (self._name, layer) if part)

    def _can_draw(self, trainer: Any) -> bool:
        if self.figures_every_n == 0 or not any(has_pictures(logger) for logger in trainer.loggers):
            return False
        found = importlib.util.find_spec("matplotlib") is not None
        if not found and self.figures_every_n and trainer.is_global_zero:
            self.warn('there are no figures without matplotlib: pip install "geomonitor[plots]"')
        return found

    def _write_curves(self, sink: Sink, records: Sequence[Record], step: int) -> None:
        if sink.name not in self._begun:
            self._begun.add(sink.name)
            sink.layout(records)
        sink.overlay(records, step)

    def _draw(self, trainer: Any, snapshots: dict[str, Snapshot], step: int) -> None:
        from geomonitor.plots import FIGURES, figure_of
        from geomonitor.plots.drawing import pixels

        for layer, snapshot in snapshots.items():
            reference = self.references.setdefault(layer, snapshot.as_reference())
            for name in FIGURES:
                try:
                    picture = pixels(figure_of(name, snapshot, None if reference.step == step else reference))
                except Exception as error:  # noqa: BLE001 - a warning; a figure is not worth a run
                    self.warn(f"the figure {name!r} cannot be drawn. {type(error).__name__}: {error}")
                    continue
                tag = f"geometry/{self._named(layer)}/{name}"
                self._each(trainer, partial(_write_picture, tag=tag, picture=picture, step=step))

    def _each(self, trainer: Any, write: Callable[[Sink], None]) -> None:
        """Write to every logger that can show more than scalars; one that fails does not keep the others from it."""
        if not trainer.is_global_zero:
            return
        for number, logger in enumerate(trainer.loggers):
            kind = type(logger).__name__
            try:
                sink = sink_of(logger, f"{number}")
                if sink is not None:
                    write(sink)
            except Exception as error:  # noqa: BLE001 - a warning; a logger must not end a run through us
                self.warn(f"{kind} did not take what geomonitor gave it. {type(error).__name__}: {error}")

    def warn(self, message: str) -> None:
        """Warn of each thing once in the life of this callback; numbers in a message make no new one."""
        cause = message.split(".", maxsplit=1)[0]
        if cause not in self._warned:
            self._warned.add(cause)
            warnings.warn(message, GeomonitorWarning, stacklevel=5)


def _write_settings(sink: Sink, *, tag: str, values: Mapping[str, Any]) -> None:
    sink.settings(tag, values)


def _write_picture(sink: Sink, *, tag: str, picture: NDArray[np.uint8], step: int) -> None:
    sink.picture(tag, picture, step)


def _write_status(sink: Sink, *, tag: str, status: Status, step: int) -> None:
    sink.status(tag, status, step)


def _write_alarm(sink: Sink, *, tag: str, alarm: Status, step: int) -> None:
    sink.alarm(tag, alarm, step)
