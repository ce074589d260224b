"""Content of a report: status, alarms, what changed, terms of the change of the capacity, cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor.alarms.alarm import Alarm, recorded_alarms
from geomonitor.alarms.context import what_changed
from geomonitor.alarms.judge import judge_history, verdicts
from geomonitor.alarms.panel import Panel, panel_of
from geomonitor.alarms.phrases import BY_MEANING, counted
from geomonitor.alarms.status import status_of
from geomonitor.alarms.status_text import BEFORE, Status, of_change
from geomonitor.alarms.verdict import Verdict
from geomonitor.history.history import History
from geomonitor.history.records import ALARM, SECONDS, Record, Series
from geomonitor.history.runs import Run
from geomonitor.history.saved import SavedCheckpoint

TERMS = ("log utility", "log (1 + radius^-2)", "-log dimension")
"""They add up to log capacity."""


class Decomposition(NamedTuple):
    """Change of log capacity since a reference measurement, and the terms that it is the sum of."""

    layer: str
    places: NDArray[np.int64]
    """of the measurements (n,), in the layer's series of capacity, at which all terms are defined"""
    reference: int
    """which of ``places`` is the reference"""
    before_decline: bool
    """whether the reference is the last measurement before a decline; otherwise it is the first one"""
    total: NDArray[np.float64]
    """change of log capacity (n,)"""
    terms: NDArray[np.float64]
    """change of each of ``TERMS`` (3, n)"""


class Overhead(NamedTuple):
    """What the measurements cost, in seconds of wall-clock time."""

    measurements: int
    total: float
    median: float
    largest: float
    share: float
    """of the time from the first to the last measurement; NaN if the times are not known"""


def labels(runs: Sequence[Run]) -> list[str]:
    """Names that differ: of the directory, or its whole path where two are called alike."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else str(run.path.parent) for run in runs]


def judged_by(history: History, layer: str, panel: Panel) -> Panel | None:
    """The panel with all that it leaves open filled in; None if it cannot judge this layer."""
    resolved = panel.resolve(history.markers(layer))
    can = resolved.watch and resolved.detector and set(resolved.watch) <= set(history.markers(layer))
    return resolved if can else None


def verdict_of(history: History, layer: str, panel: Panel) -> Verdict | None:
    """The verdict on a layer at the end of a run; None if the panel cannot judge it."""
    resolved = judged_by(history, layer, panel)
    return judge_history(history, layer, resolved) if resolved else None


def alarms(history: History, panel: Panel) -> list[Alarm]:
    """Every alarm of a run as it was raised, in order, with the verdict of the panel if that finds the decline also."""
    found = []
    for layer in history.layers:
        recorded, resolved = recorded_alarms(history, layer), judged_by(history, layer, panel)
        judged = {}
        if recorded and resolved:
            judged = {step: verdict for step, _, verdict in verdicts(history, layer, resolved) if verdict.declined}
        found += [alarm._replace(verdict=judged.get(alarm.step)) for alarm in recorded]
    return sorted(found, key=lambda alarm: alarm.step)


def words(
    history: History, alarm: Alarm, panel: Panel, healthy: SavedCheckpoint | None = None
) -> tuple[str, list[str]]:
    """Title and paragraphs of an alarm; with the last checkpoint from before a decline, if the run kept one."""
    verdict = alarm.verdict
    if verdict is not None and verdict.since_step is not None:
        agreeing = [history.series(alarm.layer, marker) for marker in verdict.agreeing]
        known = History(  # as it was at that alarm
            Record(step, None, alarm.layer, series.marker, value)
            for series in agreeing
            for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True)
            if step <= alarm.step
        )
        found = of_change(verdict, what_changed(history, verdict.since_step), healthy, known)
        return found.headline, [*found.actions, *found.details]
    title = f"The detector of the run raised an alarm on {alarm.layer!r}"
    if panel.custom:
        return title, [
            f"The run was judged by a custom detector, {panel.custom}, which a report cannot call: the marker and the "
            "size of the decline are not recorded."
        ]
    watch = ", ".join(panel.resolve(history.markers(alarm.layer)).watch or ())
    return title, [
        f"The panel of this report, on {watch or 'no marker'}, finds no decline at this measurement: the run was "
        "judged by another detector or by other markers, which are not recorded beside its history."
    ]


def status(run: Run) -> Status:
    """The status of a saved run, by the panel that judged it."""
    panel = panel_of(run.panel)
    found = status_of(run.history, panel=panel, healthy=run.last_healthy)
    if panel.custom and found.state == "unwatched":
        return found._replace(
            headline=f"The run was judged by a custom detector, {panel.custom}: it raised no alarm that lasts."
        )
    return found


def triggered(raised: Sequence[Alarm], found: Status) -> list[str]:
    """Markers that an alarm, or the status, was raised by; those that mean most come first."""
    named = {m for alarm in raised if (v := alarm.verdict) is not None for m in (v.marker, *v.agreeing)}
    if found.state in ("alarm", "notice"):
        named |= set(found.markers)
    return sorted(named, key=lambda m: (BY_MEANING.index(m) if m in BY_MEANING else len(BY_MEANING), m))


def spans(history: History, raised: Sequence[Alarm], x: str) -> list[tuple[float, float]]:
    """Begin and end of each alarm on the axis ``"epoch"`` or ``"step"``; one that lasts ends with the run."""
    found = []
    for alarm in raised:
        series = history.series(alarm.layer, ALARM)
        places = series.epochs if x == "epoch" else series.steps.astype(np.float64)
        end = len(places) - 1 if alarm.end_step is None else int(np.searchsorted(series.steps, alarm.end_step))
        found.append((float(places[int(np.searchsorted(series.steps, alarm.step))]), float(places[end])))
    return found


def reference(series: Series, since_step: int | None) -> tuple[float, float]:
    """What the end of a series is compared with, and the last value; NaN if one is not known.

    Args:
        series: of a marker.
        since_step: of the decline of its layer: the reference is the median of the three measurements before. Without
            one: of the later half of the run before the last measurement.
    """
    known = np.isfinite(series.values)
    steps, values = series.steps[known], series.values[known]
    if not len(values):
        return math.nan, math.nan
    before = values[steps < since_step][-BEFORE:] if since_step is not None else values[:-1][(len(values) - 1) // 2 :]
    return (float(np.median(before)) if len(before) else math.nan), float(values[-1])


LAST_SECOND = datetime(9999, 12, 31, tzinfo=timezone.utc).timestamp()
"""Later times, of a damaged file, have no date."""


def facts(history: History) -> list[str]:
    """When the run was measured, how often and how far, and at what cost, in a few words each."""
    times = [record.time for record in history.latest() if 0 <= record.time < LAST_SECOND]
    found = [datetime.fromtimestamp(max(times), timezone.utc).strftime("%d %B %Y, %H:%M UTC")] if times else []
    found += [f"{counted(history.longest, 'measurement')} up to {moment(*_last_moment(history))}"]
    cost = overhead(history)
    if cost is not None:
        share = f", {cost.share:.1%} of the time".replace("%", " %") if math.isfinite(cost.share) else ""
        found.append(f"measured in {cost.median:.2g} s each{share}")
    return found


def decomposition(history: History, layer: str, panel: Panel) -> Decomposition | None:
    """Take the change of log capacity apart: log utility + log(1 + radius^-2) - log dimension.

    Args:
        history: of a run.
        layer: alias of the layer.
        panel: judges whether and since when the layer declines.

    Returns:
        The terms against the last measurement before a decline, or against the first one if nothing declines; None
        if the four markers were not all measured, twice at least.
    """
    capacity, utility, radius, dimension = (
        dict(zip((s := history.series(layer, name)).steps.tolist(), s.values, strict=True))
        for name in ("capacity", "utility", "radius", "dimension")
    )
    steps = list(capacity)
    values = np.array([[m.get(step, math.nan) for step in steps] for m in (capacity, utility, radius, dimension)])
    places = np.flatnonzero((np.isfinite(values) & (values > 0)).all(axis=0))
    if len(places) < 2:
        return None
    c, u, r, d = values[:, places]
    verdict = verdict_of(history, layer, panel)
    since = verdict.since_step if verdict and verdict.declined else None
    before = [n for n, place in enumerate(places) if since is not None and steps[place] < since]
    reference = before[-1] if before else 0
    terms = np.stack([np.log(u), np.log1p(r**-2), -np.log(d)])
    total = np.log(c)
    return Decomposition(
        layer, places, reference, bool(before), total - total[reference], terms - terms[:, reference : reference + 1]
    )


def overhead(history: History) -> Overhead | None:
    """Cost of the measurements, if it was recorded."""
    rows = sorted((r for r in history if r.marker == SECONDS and not r.layer), key=lambda r: r.step)
    if not rows:
        return None
    seconds, times = np.array([r.value for r in rows]), np.array([r.time for r in rows])
    span = float(times[-1] - times[0])  # a time is the beginning of a measurement
    share = float(seconds[:-1].sum()) / span if span > 0 else math.nan
    return Overhead(len(seconds), float(seconds.sum()), float(np.median(seconds)), float(seconds.max()), share)


def moment(step: int, epoch: int | None) -> str:
    """Step and epoch in words."""
    return f"step {step}" if epoch is None else f"epoch {epoch} (step {step})"


def _last_moment(history: History) -> tuple[int, int | None]:
    last = max(history, key=lambda r: r.step)
    return last.step, last.epoch
