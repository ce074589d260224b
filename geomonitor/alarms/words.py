"""A verdict in words, wherever there is one: in a warning, in the log, for ``on_alarm``, in loggers, after a scan."""

from __future__ import annotations

from collections.abc import Sequence

from geomonitor.alarms.status import of_layer
from geomonitor.alarms.status_text import of_change
from geomonitor.alarms.verdict import Verdict
from geomonitor.errors import GeomonitorWarning
from geomonitor.history.history import History
from geomonitor.history.saved import SavedCheckpoint


class GeometryDeclineWarning(GeomonitorWarning):
    """Watched markers have declined beyond the noise."""


def explain(verdict: Verdict, changed: Sequence[str] = (), healthy: SavedCheckpoint | None = None) -> str:
    """The whole warning without a history: finding, what to do, how sure, numbers, meaning, limits; short lines.

    Args:
        verdict: an alarm, or a notice.
        changed: what changed at that time, from :func:`geomonitor.alarms.context.what_changed`.
        healthy: the last checkpoint that was kept from before a decline, if there is one.
    """
    return of_change(verdict, changed, healthy).text


def explain_in(history: History, verdict: Verdict, healthy: SavedCheckpoint | None = None) -> str:
    """The same text as :attr:`geomonitor.GeometryMonitor.status` has, with what the history knows of that time."""
    return of_layer(history, verdict.layer, verdict, healthy=healthy).text
