"""Content of a report: alarms, the sentence at its top, terms of the change of the capacity, cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor.alarms.alarm import Alarm, recorded_alarms
from geomonitor.alarms.context import what_changed
from geomonitor.alarms.judge import judge_history, verdicts
from geomonitor.alarms.panel import Panel
from geomonitor.alarms.verdict import Verdict
from geomonitor.alarms.words import explain, headline
from geomonitor.history.history import History
from geomonitor.history.records import SECONDS
from geomonitor.history.saved import SavedCheckpoint

TERMS = ("log utility", "log (1 + radius^-2)", "-log dimension")
"""They add up to log capacity."""
_MOST_VALUES = 12
"""Layers whose value the summary names."""


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
    if alarm.verdict is not None and alarm.verdict.since_step is not None:
        text = explain(alarm.verdict, what_changed(history, alarm.verdict.since_step), healthy)
        return headline(alarm.verdict), text.splitlines()[1:]
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


def summary(history: History, panel: Panel, raised: Sequence[Alarm] | None = None) -> str:
    """The state of the run in one sentence.

    Args:
        history: of the run.
        panel: judges its end.
        raised: its alarms, from :func:`alarms`, if they are known.
    """
    found = [verdict for layer in history.layers if (verdict := verdict_of(history, layer, panel)) is not None]
    raised = alarms(history, panel) if raised is None else raised
    declined = max((v for v in found if v.declined), key=lambda v: v.sigmas, default=None)
    when = moment(*_last_moment(history))
    if declined is not None:
        return f"{headline(declined)}: transfer to new classes may have become worse."
    if lasting := [alarm for alarm in raised if alarm.end_step is None]:
        return f"{words(history, lasting[-1], panel)[0]}, and it lasts until the end at {when}."
    if raised and not found:
        return f"{len(raised)} alarm(s), all cleared by {when}."
    if not found:
        judge = f"The run was judged by a custom detector, {panel.custom}" if panel.custom else "Nothing to judge"
        return f"{judge}: no alarm up to {when}."
    known = [v for layer in history.layers if (v := _leading(history, layer, panel)) and math.isfinite(v.value)]
    if not known:
        return f"Nothing to judge: no watched marker is defined up to {when}."
    values = ", ".join(f"{v.marker} is {v.value:.3g} in {v.layer!r}" for v in known[:_MOST_VALUES])
    values += f" and {len(known) - _MOST_VALUES} other layers" if len(known) > _MOST_VALUES else ""
    if raised:
        return f"{len(raised)} alarm(s), all cleared by {when}; the {values}."
    if all(math.isnan(v.reference) for v in known):
        return f"Too early to judge: at {when} the detector is still in its warm-up; the {values}."
    return f"No decline up to {when}: the {values}."


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


def _leading(history: History, layer: str, panel: Panel) -> Verdict | None:
    """The verdict on the first watched marker of a layer, by itself."""
    resolved = judged_by(history, layer, panel)
    if resolved is None or not callable(resolved.detector):
        return None
    return resolved.detector(history.series(layer, (resolved.watch or ("",))[0]))
