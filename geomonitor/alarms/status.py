"""The status of a run, for a person: is it healthy, since when not, and what to do now.

One pure function of history and verdicts, whose text stands in the terminal, in TensorBoard and W&B, in the report, in
the message of an alarm, and in a notebook.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from geomonitor.alarms import phrases
from geomonitor.alarms.alarm import epoch_of, recorded_alarms
from geomonitor.alarms.context import what_changed
from geomonitor.alarms.harm import SILENT_IN_THE_BENCH
from geomonitor.alarms.judge import judge_history, restarts
from geomonitor.alarms.panel import Panel
from geomonitor.alarms.status_text import TITLES, Status, of_change, way_back
from geomonitor.alarms.verdict import Verdict
from geomonitor.history.history import History
from geomonitor.history.records import ALARM
from geomonitor.history.saved import SavedCheckpoint


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
    return Status("alarm", layer, headline, (*way_back(step, healthy), phrases.CHECK), (), step, epoch)


def _calm(history: History, layer: str, verdict: Verdict) -> Status:
    last = phrases.at(*_last(history, layer))
    details = [
        "No proof of health: label noise and label leaks leave the dimension high; corrupted inputs are not covered.",
        f"Numbers: {verdict.marker} of {layer!r} is {verdict.value:.3g}, expected {verdict.reference:.3g}.",
    ]
    if over := recorded_alarms(history, layer):
        ended = f", the last one at step {over[-1].end_step}"
        details.insert(0, f"{phrases.counted(len(over), 'earlier alarm')} ended{ended}.")
    if verdict.calibrated:
        harmed, silent = SILENT_IN_THE_BENCH
        details.append(
            f"How sure: in the bench {harmed} of {silent:,} runs without a notice lost accuracy on new classes."
        )
    headline = f"No watched marker has declined beyond the noise up to {last}."
    if not verdict.settled:
        headline = (
            f"No watched marker has declined by the size of an alarm up to {last}. Smaller declines are judged once "
            "the early fall of the markers is over."
        )
    return Status("healthy", layer, headline, (), tuple(details))


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
