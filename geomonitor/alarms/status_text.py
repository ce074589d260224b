"""What a status is, and that of a layer in an alarm or with a notice: what was lost, what to do, how sure that is."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from geomonitor.alarms import phrases
from geomonitor.alarms.harm import ALARM_AT, ALARMS_IN_THE_BENCH, NOTICES_IN_THE_BENCH
from geomonitor.alarms.verdict import Direction, Verdict
from geomonitor.history.history import History
from geomonitor.history.records import Series
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
        actions = [*way_back(verdict.since_step, healthy), *phrases.causes(changed)]
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


def way_back(since_step: int | None, healthy: SavedCheckpoint | None) -> list[str]:
    """Which checkpoint precedes a decline."""
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
