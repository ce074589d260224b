"""The judge: measurements in, verdicts on layers out. A run, a scan, a replay and a report all judge through it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from geomonitor.alarms.alarm import Alarm, epoch_of, intervals
from geomonitor.alarms.detectors.drop import DropFromReference
from geomonitor.alarms.detectors.incremental import IncrementalDetector, Measured, State, incremental, measurements
from geomonitor.alarms.panel import Panel
from geomonitor.alarms.verdict import Verdict
from geomonitor.alarms.votes import count_votes
from geomonitor.errors import InputError
from geomonitor.history.history import History
from geomonitor.history.records import ANNOUNCED, Series

STATE_VERSION = 3
"""Of the layout of the states of all built-in detectors: a state of another version is not read, but made anew."""

Values = Mapping[str, tuple[float, float, float]]
"""By marker: value, standard error, and standard error of the change since the measurement before; NaN if unknown."""


class Judge:
    """Judges the layers of a model by a panel, one measurement after the other, each at the same cost.

    A notice needs a warm-up that is over: the early fall of the markers, while classes form, is none. A decline of the
    size of an alarm is beyond that fall, so alarms are judged from ``warmup_checks`` measurements on, however many an
    epoch holds and whether the level has settled or not.

    Args:
        panel: with watched markers and a detector; what else it leaves open is filled in.

    Raises:
        InputError: a panel that watches nothing, or has no detector.

    >>> from geomonitor import DropFromReference
    >>> judge = Judge(Panel(("dimension",), DropFromReference(warmup_checks=2)))
    >>> for number, value in enumerate([2.0, 2.0, 2.0, 2.0, 1.2, 1.2]):
    ...     verdict = judge.update("fc", 10 * number, number, {"dimension": (value, math.nan, math.nan)})
    >>> verdict.declined, verdict.since_epoch
    (True, 4)
    """

    def __init__(self, panel: Panel) -> None:
        panel = panel.resolve(panel.watch or ())
        if not panel.watch or panel.detector is None or isinstance(panel.detector, str):
            raise InputError(f"a judge needs a panel with watched markers and a detector; got {panel}")
        self.panel = panel
        self._watch = panel.watch
        self._votes, self._alarm_at = panel.votes or 1, panel.alarm_at or {}
        self._detector = incremental(panel.detector)
        self._at_once: IncrementalDetector | None = None  # judges sizes; None: the same detector judges both
        if self._alarm_at and isinstance(panel.detector, DropFromReference) and math.isfinite(panel.detector.settled):
            self._at_once = panel.detector.at_once()
        self._sized = tuple(marker for marker in self._watch if self._at_once and marker in self._alarm_at)
        self._states: dict[str, dict[str, State]] = {}
        self._sizes: dict[str, dict[str, State]] = {}
        self._last_steps: dict[str, int] = {}

    def update(
        self, layer: str, step: int, epoch: int | None, values: Values, *, history: History | None = None
    ) -> Verdict:
        """The verdict on a layer after one more measurement.

        Args:
            layer: alias of the layer.
            step: optimiser steps done.
            epoch: from 0; None where epochs are not known.
            values: of the watched markers, and of others, which are passed over.
            history: of the run, with this measurement in it; the layer is judged anew by it if ``step`` does not come
                after the last one: a part of a run was repeated.

        Raises:
            InputError: a step that does not come after the last one, and no history.
        """
        if step <= self._last_steps.get(layer, step - 1):
            if history is None:
                raise InputError(f"step {step} does not come after step {self._last_steps[layer]}: give the history")
            self._judge_anew(history, layer)
        else:
            self._advance(layer, step, math.nan if epoch is None else float(epoch), values)
        return self.verdict(layer)

    def verdict(self, layer: str) -> Verdict:
        """The verdict on a layer after its latest measurement."""
        verdicts = _verdicts(self._detector, layer, self._watch, self._states)
        verdict = count_votes(verdicts, self._votes, self._alarm_at)
        if self._at_once is not None:
            sized = count_votes(_verdicts(self._at_once, layer, self._sized, self._sizes), self._votes, self._alarm_at)
            verdict = _both(verdict, sized, verdicts)
        return verdict._replace(calibrated=self.panel.calibrated)

    def restart(self, layers: Iterable[str]) -> None:
        """Forget what was seen of some layers before the next measurement: a planned change makes it another series."""
        for layer in layers:
            self._states.pop(layer, None)
            self._sizes.pop(layer, None)

    def rebuild(self, history: History) -> None:
        """Judge all measurements of a history anew, and forget what was judged before."""
        self._states, self._sizes, self._last_steps = {}, {}, {}
        for layer in history.layers:
            self._judge_anew(history, layer)

    def state_dict(self) -> dict[str, Any]:
        """Panel and states in plain values: it goes through JSON and loads with ``weights_only=True``."""
        return {
            "version": STATE_VERSION,
            "panel": self.panel.to_dict(),
            "states": {layer: dict(states) for layer, states in self._states.items()},
            "sizes": {layer: dict(states) for layer, states in self._sizes.items()},
            "last_steps": dict(self._last_steps),
        }

    def load_state_dict(self, state: Mapping[str, Any] | None, history: History) -> None:
        """Continue from a saved judge.

        Args:
            state: from :meth:`state_dict`; None if an older version saved none.
            history: of the run up to there, by which all is judged anew if the panel or the version is another one.
        """
        saved = state or {}
        if saved.get("version") != STATE_VERSION or saved["panel"] != self.panel.to_dict():
            self.rebuild(history)
            return
        self._states, self._sizes = (
            {layer: dict(states) for layer, states in saved[name].items()} for name in ("states", "sizes")
        )
        self._last_steps = dict(saved["last_steps"])

    def _advance(self, layer: str, step: int, epoch: float, values: Values) -> None:
        for detector, markers, of_layers in self._tracks():
            states = of_layers.setdefault(layer, {})
            for marker in markers:
                if marker in values:
                    measured = Measured(step, epoch, *map(float, values[marker]))
                    states[marker] = detector.step(states.get(marker) or detector.start(layer, marker), measured)
        self._last_steps[layer] = step

    def _tracks(self) -> Iterator[tuple[IncrementalDetector, Sequence[str], dict[str, dict[str, State]]]]:
        """What judges notices, and what judges alarms if that is another detector."""
        yield self._detector, self._watch, self._states
        if self._at_once is not None:
            yield self._at_once, self._sized, self._sizes

    def _judge_anew(self, history: History, layer: str) -> None:
        first = max(restarts(history), default=0)
        series = {marker: [*_after(history.series(layer, marker), first)] for marker in self._watch}
        for detector, markers, of_layers in self._tracks():
            of_layers[layer] = {
                m: functools.reduce(detector.step, series[m], detector.start(layer, m)) for m in markers
            }
        steps = [history.series(layer, marker).steps for marker in self._watch]
        self._last_steps[layer] = max((int(of_marker[-1]) for of_marker in steps if len(of_marker)), default=-1)


def _verdicts(
    detector: IncrementalDetector, layer: str, markers: Sequence[str], states: Mapping[str, Mapping[str, State]]
) -> list[Verdict]:
    known = states.get(layer, {})
    return [detector.verdict(known.get(marker) or detector.start(layer, marker)) for marker in markers]


def _both(notice: Verdict, sized: Verdict, verdicts: Sequence[Verdict]) -> Verdict:
    """The alarm of what judges sizes, else the notice of what waits for the warm-up, else what has a reference."""
    if sized.declined:
        low = (verdict.marker for verdict in verdicts if verdict.share > 0 and verdict.marker != sized.marker)
        return sized._replace(agreeing=tuple(dict.fromkeys((*sized.agreeing, *low))))
    if not notice.noticed and math.isnan(notice.reference):
        return sized._replace(noticed=False, settled=math.isnan(sized.reference))  # NaN: nothing is judged yet
    return notice._replace(declined=False, pending=sized.pending)


def restarts(history: History) -> set[int]:
    """Steps of the measurements that were the first after a planned change."""
    series = history.series("", ANNOUNCED)
    return {int(step) for step, value in zip(series.steps, series.values, strict=True) if value > 0}


def verdicts(history: History, layer: str, panel: Panel) -> Iterator[tuple[int, int | None, Verdict]]:
    """Step, epoch and verdict on a layer after each measurement of a saved run, as they would have come.

    Args:
        history: of the whole run.
        layer: alias of the layer.
        panel: what it leaves open is filled in by the markers that were measured.

    Raises:
        InputError: a layer or a marker that the history does not have, or a panel without a detector.
    """
    judge = Judge(panel.resolve(history.markers(layer)))
    series = [history.series(layer, marker) for marker in judge.panel.watch or ()]
    if missing := [one.marker for one in series if not len(one.steps)]:
        raise InputError(f"the history has no values of {', '.join(missing)} for the layer {layer!r}")
    rows: dict[int, dict[str, Measured]] = {}
    for one in series:
        for measured in measurements(one):
            rows.setdefault(measured.step, {})[one.marker] = measured
    planned = restarts(history)
    for step, row in sorted(rows.items()):
        if step in planned:
            judge.restart([layer])
        epoch = epoch_of(next(iter(row.values())).epoch)
        yield step, epoch, judge.update(layer, step, epoch, {marker: measured[2:] for marker, measured in row.items()})


def replay(history: History, layer: str, panel: Panel) -> list[Alarm]:
    """All alarms of a saved run by a panel, as they would have come: another setting is tried in a second.

    Args:
        history: of the whole run.
        layer: alias of the layer.
        panel: what it leaves open is filled in by the markers that were measured.

    Raises:
        InputError: a layer or a marker that the history does not have, or a panel without a detector.

    >>> from geomonitor import DropFromReference, Record
    >>> values = [2.0] * 10 + [1.2] * 5
    >>> history = History(Record(10 * n, n, "fc", "dimension", value) for n, value in enumerate(values))
    >>> [(alarm.epoch, alarm.end_step) for alarm in replay(history, "fc", Panel(("dimension",), DropFromReference()))]
    [(11, None)]
    """
    judged = verdicts(history, layer, panel)
    return intervals(layer, ((step, epoch, verdict.declined, verdict) for step, epoch, verdict in judged))


def _after(series: Series, first: int) -> Iterator[Measured]:
    return (measured for measured in measurements(series) if measured.step >= first)


def judge_history(history: History, layer: str, panel: Panel) -> Verdict:
    """The verdict on a layer at the end of a saved run; see :func:`replay`."""
    judge = Judge(panel.resolve(history.markers(layer)))
    judge._judge_anew(history, layer)  # this layer alone: there may be thousands
    return judge.verdict(layer)
