"""The status of a run, for a person: is it healthy, since when not, and what to do now.

One pure function of history and verdicts, whose text stands in the terminal, in TensorBoard and W&B, in the report, in
the message of an alarm, and in a notebook.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from geomonitor.alarms import phrases
from geomonitor.alarms.alarm import epoch_of, recorded_alarms
from geomonitor.alarms.context import what_changed
from geomonitor.alarms.harm import ALARM_AT, ALARMS_IN_THE_BENCH, NOTICES_IN_THE_BENCH, SILENT_IN_THE_BENCH
from geomonitor.alarms.judge import judge_history, restarts
from geomonitor.alarms.panel import Panel
from geomonitor.alarms.verdict import Direction, Verdict
from geomonitor.history.history import History
from geomonitor.history.records import ALARM, Series
from geomonitor.history.saved import SavedCheckpoint

State = Literal["healthy", "early", "notice", "alarm", "blind", "unwatched"]
TITLES: Mapping[State, str] = MappingProxyType(
    {
        "alarm": "alarm",
        "blind": "blind",
        "notice": "notice",
        "early": "not judged yet",
        "unwatched": "not watched",
        "healthy": "healthy",
    }
)
"""The states, the most urgent one first: that of a run is the most urgent one of its layers."""
COLORS: Mapping[State, str] = MappingProxyType(
    {
        "alarm": "#b3261e",
        "blind": "#8e4ec6",
        "notice": "#9a6700",
        "early": "#5b6470",
        "unwatched": "#5b6470",
        "healthy": "#1a7f37",
    }
)
"""Each has a contrast of 4.5 or more to white (WCAG AA)."""
LEAST_NAMED = 0.025
"""A status does not begin with a marker that changed by less: the default panel does not judge it."""
BEFORE = 3
"""Measurements before a decline whose median a marker is compared with: one outlier does not move it."""


class Status(NamedTuple):
    """What a person reads first; ``str(status)`` is the whole text."""

    state: State
    layer: str
    """alias; "" if nothing was measured"""
    headline: str
    """what happened since when, and what it means, in a sentence or two"""
    actions: tuple[str, ...] = ()
    """what to do now"""
    details: tuple[str, ...] = ()
    """how sure that is, numbers, meaning, limits"""
    since_step: int | None = None
    """first measurement of it, in optimiser steps; None if that is not known, or nothing is wrong"""
    since_epoch: int | None = None
    """the same in epochs; None also if epochs are not known"""
    markers: tuple[str, ...] = ()
    """that decline or have changed, the one of the headline first"""

    @property
    def title(self) -> str:
        """The state in a word or three."""
        return TITLES[self.state]

    @property
    def color(self) -> str:
        """Of the state, on white."""
        return COLORS[self.state]

    @property
    def text(self) -> str:
        """The whole status in short lines, the most important one first."""
        return "\n".join((f"geometry {self.title}: {self.headline}", *self.actions, *self.details))

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return self._asdict()

    def _repr_html_(self) -> str:
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in self.actions)
        rest = "".join(f"<div>{html.escape(line)}</div>" for line in self.details)
        return (
            f'<div style="border-left:4px solid {self.color};padding:2px 12px;max-width:80ch">'
            f'<b style="color:{self.color}">{self.title.capitalize()}</b> {html.escape(self.headline)}{lines}'
            f'<div style="opacity:.75;font-size:90%">{rest}</div></div>'
        )


def status_of(
    history: History,
    verdicts: Mapping[str, Verdict] | None = None,
    *,
    panel: Panel | None = Panel(),
    healthy: SavedCheckpoint | None = None,
) -> Status:
    """The status of a run, that of its most urgent layer.

    Args:
        history: of the run so far.
        verdicts: the latest one by layer; layers without one are judged here.
        panel: what is judged and how; None: nothing is.
        healthy: the last checkpoint from before a decline, if the run kept one.

    >>> from geomonitor import Record
    >>> history = History(Record(10 * n, n, "fc", "dimension", 2.0) for n in range(8))
    >>> print(status_of(history, panel=Panel(("dimension",))).headline)
    No watched marker has declined beyond the noise up to epoch 7 (step 70).
    """
    given = verdicts or {}
    found = [
        of_layer(history, layer, given.get(layer) or _judged(history, layer, panel), panel=panel, healthy=healthy)
        for layer in history.layers
    ]
    if not found:
        return Status("early", "", "Nothing was measured so far.")
    order = tuple(TITLES)
    found.sort(key=lambda status: order.index(status.state))
    first, others = found[0], found[1:]
    if not others:
        return first
    listed = ", ".join(f"{other.layer!r} {other.title}" for other in others[:10]) + (", ..." if others[10:] else "")
    return first._replace(details=(*first.details, f"Other layers: {listed}."))


def of_layer(
    history: History,
    layer: str,
    verdict: Verdict | None,
    *,
    panel: Panel | None = None,
    healthy: SavedCheckpoint | None = None,
) -> Status:
    """The status of one layer; see :func:`status_of`."""
    failing = _failing(history, layer)
    lasting = [alarm for alarm in recorded_alarms(history, layer) if alarm.end_step is None]
    if verdict is not None and (verdict.declined or verdict.noticed):
        changed = [] if verdict.since_step is None else what_changed(history, verdict.since_step)
        status = of_change(verdict, changed, healthy, history)
        if failing is not None:
            status = status._replace(
                details=(f"Measurements fail since {phrases.at(*failing)}: this is older.", *status.details)
            )
        return status
    if failing is not None:
        return _blind(history, layer, failing)
    if lasting:
        return _recorded(layer, lasting[-1].step, lasting[-1].epoch, healthy)
    if verdict is None:
        return Status("unwatched", layer, "No panel judges this run, so there are neither notices nor alarms.")
    if math.isfinite(verdict.reference):
        return _calm(history, layer, verdict)
    return _too_early(history, layer, panel)


def of_change(
    verdict: Verdict,
    changed: Sequence[str] = (),
    healthy: SavedCheckpoint | None = None,
    history: History | None = None,
) -> Status:
    """The status of a layer in an alarm, or with a notice.

    Args:
        verdict: an alarm, or a notice.
        changed: what changed at that time, from :func:`geomonitor.alarms.context.what_changed`.
        healthy: the last checkpoint that was kept from before a decline, if there is one.
        history: of the run, by which the marker that means most is found among those that agree.
    """
    marker, direction, change = _leading(history, verdict)
    leading = verdict._replace(marker=marker, direction=direction)
    where = "" if verdict.layer == "penultimate" else f" of {verdict.layer!r}"
    since = "" if verdict.since_step is None else f" since {phrases.at(verdict.since_step, verdict.since_epoch)}"
    finding = f"The representation{where} {phrases.loss(marker, direction, change)}{since}."
    also = "Also declining" if verdict.declined else "Also changed"
    details = [f"Numbers: {phrases.numbers(verdict)}, {phrases.times(verdict.checks)}."]
    if verdict.agreeing:
        details.append(f"{also}: {', '.join(verdict.agreeing)}.")
    meant = f"Meaning: {phrases.meaning(leading)}"
    state: State = "alarm" if verdict.declined else "notice"
    if state == "notice":
        consequence = "No alarm: the change is smaller than, or of another kind than, those that an alarm needs."
        actions = phrases.causes(changed) if changed else []
        if verdict.calibrated:
            harmed, raised = NOTICES_IN_THE_BENCH
            actions.append("If you have data of new classes, measure transfer.")
            details.insert(
                0,
                f"How sure: in the bench {harmed} of {raised} runs with a notice and no alarm lost accuracy on new "
                "classes.",
            )
    else:
        consequence = _consequence(phrases.forecast(leading))
        actions = [*_way_back(verdict.since_step, healthy), *phrases.causes(changed)]
        if verdict.calibrated:
            harmed, raised = ALARMS_IN_THE_BENCH
            consequence = "New classes will likely fare worse."
            details.insert(
                0,
                f"How sure: in small runs of other tasks {harmed} of {raised} such alarms came with a fall of accuracy "
                "on new classes by 0.03 or more.",
            )
        details += [meant, phrases.forecast(leading), phrases.not_covered(verdict)]
    return Status(
        state, verdict.layer, f"{finding} {consequence}", tuple(actions), tuple(details), verdict.since_step,
        verdict.since_epoch, tuple(dict.fromkeys((marker, verdict.marker, *verdict.agreeing))),
    )  # fmt: skip


def _consequence(forecast: str) -> str:
    """The forecast of a marker in a few words, if its panel has no rates."""
    if forecast.startswith("Networks with"):
        return "New classes may fare worse."
    return "What it means for new classes is not known." if "not known" in forecast else "New classes may be affected."


def _way_back(since_step: int | None, healthy: SavedCheckpoint | None) -> list[str]:
    if healthy is not None and since_step is not None and healthy.step < since_step:
        return [f"Last healthy checkpoint: {healthy}."]
    none = "geomonitor kept none; GeometryCheckpoint does"
    return [] if since_step is None else [f"Last healthy checkpoint: one from before step {since_step} ({none})."]


def _leading(history: History | None, verdict: Verdict) -> tuple[str, Direction, float]:
    """Of the markers that decline the one that means most, its direction, and its change since before."""
    own = verdict.marker, verdict.direction, verdict.change
    if history is None or verdict.since_step is None:
        return own
    for marker in phrases.BY_MEANING:
        if marker == verdict.marker:
            return own
        if marker in verdict.agreeing:
            direction: Direction = "higher" if marker == "cdnv" else "lower"
            change = _change(history.series(verdict.layer, marker), verdict.since_step)
            least = ALARM_AT.get(marker, LEAST_NAMED) if verdict.declined and verdict.calibrated else LEAST_NAMED
            if (change if direction == "higher" else -change) >= least:
                return marker, direction, change
    return own


def _change(series: Series, since_step: int) -> float:
    """Relative change of the latest value against the median of those just before a step; NaN if one is not known."""
    known = np.isfinite(series.values)
    steps, values = series.steps[known], series.values[known]
    before = values[steps < since_step][-BEFORE:]
    if not len(before) or not np.median(before):
        return math.nan
    return float(values[-1] / np.median(before) - 1)


def _failing(history: History, layer: str) -> tuple[int, int | None] | None:
    """Step and epoch since which nothing could be judged, because measurements fail; None if the latest one did not."""
    series = history.series(layer, ALARM)
    if len(series.steps) and series.steps[-1] < _last(history, layer)[0]:
        return None  # the latest measurement is being judged now
    good = np.flatnonzero(np.isfinite(series.values))
    first = int(good[-1]) + 1 if len(good) else 0
    return (int(series.steps[first]), epoch_of(series.epochs[first])) if first < len(series.values) else None


def _blind(history: History, layer: str, since: tuple[int, int | None]) -> Status:
    broken = history.series(layer, "nonfinite_rows").values[-1:]
    rows = int(broken[0]) if len(broken) and math.isfinite(broken[0]) else 0
    cause = (
        f"{phrases.counted(rows, 'point')} of the probe set had NaN or infinite features at the latest measurement: "
        "check the loss and the learning rate."
        if rows
        else "The cause is in the log of that time: search it for a warning of geomonitor."
    )
    headline = f"Measurements of {layer!r} fail since {phrases.at(*since)}: nothing is judged until one succeeds."
    earlier = [alarm for alarm in recorded_alarms(history, layer) if alarm.end_step is None]
    details = [f"Before that, an alarm was raised at {phrases.at(a.step, a.epoch)}." for a in earlier]
    return Status("blind", layer, headline, (cause,), tuple(details), *since)


def _recorded(layer: str, step: int, epoch: int | None, healthy: SavedCheckpoint | None) -> Status:
    """Of an alarm that only its record is known of: another detector raised it."""
    headline = f"The detector of the run raised an alarm on {layer!r} at {phrases.at(step, epoch)}, and it lasts."
    return Status("alarm", layer, headline, (*_way_back(step, healthy), phrases.CHECK), (), step, epoch)


def _calm(history: History, layer: str, verdict: Verdict) -> Status:
    last = phrases.at(*_last(history, layer))
    details = [
        f"Numbers: {verdict.marker} of {layer!r} is {verdict.value:.3g}, expected {verdict.reference:.3g}.",
        "No proof of health: label noise and label leaks leave the dimension high; corrupted inputs are not covered.",
    ]
    if over := recorded_alarms(history, layer):
        ended = f", the last one at step {over[-1].end_step}"
        details.insert(0, f"{phrases.counted(len(over), 'earlier alarm')} ended{ended}.")
    if verdict.calibrated:
        harmed, silent = SILENT_IN_THE_BENCH
        details.append(
            f"How sure: in the bench {harmed} of {silent:,} runs without a notice lost accuracy on new classes."
        )
    return Status(
        "healthy", layer, f"No watched marker has declined beyond the noise up to {last}.", (), tuple(details)
    )


def _too_early(history: History, layer: str, panel: Panel | None) -> Status:
    markers = history.markers(layer)
    resolved = None if panel is None else panel.resolve(markers)
    detector = resolved and resolved.detector
    watched = [m for m in ((resolved and resolved.watch) or markers) if m in markers]
    first = max(restarts(history), default=-1)
    series = [history.series(layer, marker) for marker in watched]
    done = max((int(np.isfinite(one.values[one.steps >= first]).sum()) for one in series), default=0)
    needed = getattr(detector, "warmup_checks", None)
    start = " since the planned change" if first >= 0 else ""
    measured = f"{phrases.counted(done, 'measurement')}{start}"
    actions: tuple[str, ...] = ()
    if needed is None:
        headline = f"There is no reference to judge by yet, after {measured}."
    elif done <= needed:
        headline = f"Judged from measurement {needed + 1} at the earliest; so far {measured}."
        actions = ("If the run ends before that, measure more often (every_n_steps).",)
    else:
        headline = f"The early fall of the markers is not over after {measured}: judged when they settle."
    details = ("Until then a decline raises no alarm, and healthy and failing runs look alike.",)
    return Status("early", layer, headline, actions, details)


def _judged(history: History, layer: str, panel: Panel | None) -> Verdict | None:
    """The verdict of a panel on a saved run; None if it cannot judge the layer."""
    if panel is None:
        return None
    resolved = panel.resolve(history.markers(layer))
    if not resolved.watch or not resolved.detector or not set(resolved.watch) <= set(history.markers(layer)):
        return None
    return judge_history(history, layer, resolved)


def _last(history: History, layer: str) -> tuple[int, int | None]:
    series = max((history.series(layer, m) for m in history.markers(layer)), key=lambda s: s.steps[-1])
    return int(series.steps[-1]), epoch_of(series.epochs[-1])
