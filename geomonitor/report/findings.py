"""What a report tells: alarms, the sentence at its top, where the change of the capacity comes from, what it cost."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor.alarms.panel import ALONE, make_panel
from geomonitor.alarms.verdict import DEFAULT_WATCH, Verdict, judge
from geomonitor.alarms.words import explain, headline, what_changed
from geomonitor.history.history import History
from geomonitor.history.records import ALARM, SECONDS

WATCHED = "dimension"
"""The marker whose value the summary gives; judged are all that a monitor watches by default."""
TERMS = ("log utility", "log (1 + radius^-2)", "-log dimension")
"""They add up to log capacity."""


class Alarm(NamedTuple):
    """A stretch of a run in which a layer's alarm was on, as recorded while it ran."""

    layer: str
    step: int
    """measurement at which it was raised"""
    epoch: int | None
    cleared_step: int | None
    """measurement at which it was off again; None where it lasted"""
    title: str
    meaning: list[str]
    """paragraphs"""


class Decomposition(NamedTuple):
    """Change of log capacity since a reference measurement, and the terms that it is the sum of."""

    layer: str
    places: NDArray[np.int64]
    """of the measurements (n,), in the layer's series of capacity, where all terms are defined"""
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
    """of the time from the first to the last measurement; NaN where the times are not known"""


def verdict_of(history: History, layer: str) -> Verdict:
    """The verdict on a layer at the end of a run, by the default detector on the markers watched by default."""
    watch, detector, votes = make_panel(history.markers(layer))
    return judge(history, layer, watch or [WATCHED], detector, votes)


def alarms(history: History) -> list[Alarm]:
    """Every alarm of a run, in the order in which they were raised."""
    found = []
    for layer in history.layers:
        series = history.series(layer, ALARM)
        known = np.isfinite(series.values)
        steps, epochs, values = series.steps[known], series.epochs[known], series.values[known]
        for place in np.flatnonzero((values == 1) & (np.append(0, values[:-1]) != 1)):
            off = np.flatnonzero(values[place:] != 1)
            step = int(steps[place])
            epoch = int(epochs[place]) if np.isfinite(epochs[place]) else None
            words = _words(History(r for r in history if r.step <= step), layer)
            found.append(Alarm(layer, step, epoch, int(steps[place + off[0]]) if len(off) else None, *words))
    return sorted(found, key=lambda alarm: alarm.step)


def summary(history: History) -> str:
    """The state of the run in one sentence."""
    verdicts = {layer: verdict_of(history, layer) for layer in history.layers}
    raised = alarms(history)
    lasting = [alarm for alarm in raised if alarm.cleared_step is None]
    declined = max((v for v in verdicts.values() if v.declined), key=lambda v: v.sigmas, default=None)
    when = moment(*_last_moment(history))
    if declined is not None:
        return f"{headline(declined)}: transfer to new classes may have become worse."
    if lasting:
        return f"{lasting[-1].title}, and it lasts until the end at {when}."
    of_dimension = [judge(history, layer, [WATCHED], ALONE) for layer in history.layers]
    known = [v for v in of_dimension if math.isfinite(v.value)]
    if not known:
        return f"Nothing to judge: the {WATCHED} was not measured, or is undefined, up to {when}."
    values = ", ".join(f"{v.value:.3g} in {v.layer!r}" for v in known)
    if raised:
        return f"{len(raised)} alarm(s), all cleared by {when}; the {WATCHED} is {values}."
    if all(math.isnan(v.reference) for v in known):
        return f"Too early to judge: at {when} the detector is still in its warm-up; the {WATCHED} is {values}."
    return f"No decline up to {when}: the {WATCHED} is {values}."


def decomposition(history: History, layer: str) -> Decomposition | None:
    """Take the change of log capacity apart: log utility + log(1 + radius^-2) - log dimension.

    Args:
        history: of a run.
        layer: alias of the layer.

    Returns:
        The terms against the last measurement before a decline, or against the first one where nothing declines; None
        where the four markers were not all measured, twice at least.
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
    verdict = verdict_of(history, layer)
    since = verdict.since_step if verdict.declined else None
    before = [n for n, place in enumerate(places) if since is not None and steps[place] < since]
    reference = before[-1] if before else 0
    terms = np.stack([np.log(u), np.log1p(r**-2), -np.log(d)])
    total = np.log(c)
    return Decomposition(
        layer, places, reference, bool(before), total - total[reference], terms - terms[:, reference : reference + 1]
    )


def overhead(history: History) -> Overhead | None:
    """Cost of the measurements, where it was recorded."""
    rows = sorted((r for r in history if r.marker == SECONDS and not r.layer), key=lambda r: r.step)
    if not rows:
        return None
    seconds, times = np.array([r.value for r in rows]), np.array([r.time for r in rows])
    span = float(times[-1] - times[0])  # times are those of the beginning of a measurement
    share = float(seconds[:-1].sum()) / span if span > 0 else math.nan
    return Overhead(len(rows), float(seconds.sum()), float(np.median(seconds)), float(seconds.max()), share)


def moment(step: int, epoch: int | None) -> str:
    """A moment of training in words."""
    return f"step {step}" if epoch is None else f"epoch {epoch} (step {step})"


def _last_moment(history: History) -> tuple[int, int | None]:
    last = max(history, key=lambda r: r.step)
    return last.step, last.epoch


def _words(history: History, layer: str) -> tuple[str, list[str]]:
    verdict = verdict_of(history, layer)
    if verdict.declined and verdict.since_step is not None:
        return headline(verdict), explain(verdict, what_changed(history, verdict.since_step)).splitlines()[1:]
    return f"The detector of the run raised an alarm on {layer!r}", [
        f"The default detector, on {', '.join(DEFAULT_WATCH)}, sees no decline at this measurement: the run was "
        "judged by another detector or by other markers, and their settings are not part of the history."
    ]
