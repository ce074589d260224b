"""Judging as measurements come: verdicts, records of the alarm, and a warning for a new alarm."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from geomonitor._distributed import ALL_PROCESSES
from geomonitor._warnings import WarnOnce, cause_of
from geomonitor.alarms.judge import Judge
from geomonitor.alarms.panel import Panel
from geomonitor.alarms.verdict import Verdict
from geomonitor.alarms.words import GeometryDeclineWarning, explain_in
from geomonitor.errors import InputError
from geomonitor.history.history import History
from geomonitor.history.records import ALARM, ANNOUNCED, JUDGED, NOTICE, Record
from geomonitor.history.saved import SavedCheckpoint

LOG = logging.getLogger("geomonitor")
"""Notices go here, at level INFO."""


class LiveJudge:
    """Judges every layer at each measurement of a run; a detector that fails ends nothing.

    Args:
        panel: what is judged and how, filled in; None: nothing is judged.
        on_error: ``"raise"`` raises what a detector raised; ``"warn"`` warns of it, and the alarm is NaN.
        warn: warns of each cause once.
    """

    def __init__(self, panel: Panel | None, on_error: Literal["warn", "raise"], warn: WarnOnce) -> None:
        self.panel = panel
        self.verdicts: dict[str, Verdict] = {}
        """the latest verdict by layer"""
        self.new_alarms: list[Verdict] = []
        """verdicts that the latest measurement turned to "declined" """
        self.new_notices: list[Verdict] = []
        """verdicts that the latest measurement turned to "noticed", but not to "declined" """
        self._judge = None if panel is None else Judge(panel)
        self._planned: list[str] = []  # changes since the latest measurement
        self._on_error = on_error
        self._warn = warn

    def announce(self, change: str) -> None:
        """See :meth:`geomonitor.GeometryMonitor.announce`."""
        if not isinstance(change, str) or not change.strip():
            raise InputError(f'announce takes a few words, such as "mixup on"; got {change!r}')
        self._planned.append(change)
        if ALL_PROCESSES.rank == 0:
            LOG.info("geometry notice: planned change: %s. The reference starts anew.", change)

    def update(
        self,
        step: int,
        epoch: int | None,
        values: Mapping[str, Mapping[str, tuple[float, float]]],
        changes: Mapping[tuple[str, str], float],
        history: History,
    ) -> list[Record]:
        """Judge one measurement.

        Args:
            step: optimiser steps done.
            epoch: epoch, from 0.
            values: marker and standard error, by layer and name.
            changes: standard error of the change since the measurement before, by layer and marker, if it is known.
            history: all measurements up to this one, to start over from if this step is not after the last one.

        Returns:
            For each layer ``alarm``, ``notice`` and ``judged``. Alarm and notice are NaN, not 0, if nothing could be
            measured or the detector failed; ``judged`` is 0 then, and also while it is too early to judge.
        """
        records: list[Record] = []
        self.new_alarms, self.new_notices = [], []
        if self._planned:
            history.append([Record(step, epoch, "", ANNOUNCED, 1.0)])
        if self.panel is None or self._judge is None:
            self._planned = []
            return records
        if self._planned:
            self._judge.restart(values)
            self._planned = []
        for layer, of_layer in values.items():
            watched = {
                marker: (*of_layer[marker], changes.get((layer, marker), math.nan)) for marker in self.panel.watch or ()
            }
            seen = any(math.isfinite(value) for value, *_ in watched.values())
            try:
                before = self._judge.verdict(layer)
                verdict = self._judge.update(layer, step, epoch, watched, history=history)
            except Exception as error:
                if self._on_error == "raise":
                    raise
                self._warn.of_failure(f"the detector failed, so nothing is judged. {error!r}", cause_of(error))
                alarm, notice, judged = math.nan, math.nan, False
            else:
                self.verdicts[layer] = verdict
                alarm, notice = (float(v) if seen else math.nan for v in (verdict.declined, verdict.noticed))
                judged = seen and (verdict.declined or math.isfinite(verdict.reference))
                if verdict.declined and not before.declined:
                    self.new_alarms.append(verdict)
                elif verdict.noticed and not before.noticed:
                    self.new_notices.append(verdict)
            known = ((ALARM, alarm), (NOTICE, notice), (JUDGED, float(judged)))
            records += [Record(step, epoch, layer, name, value) for name, value in known]
        return records

    def warn_of_alarms(self, history: History, healthy: SavedCheckpoint | None = None) -> None:
        """Warn of new alarms and log new notices, with what changed at that time."""
        for verdict in self.new_alarms:
            warnings.warn(explain_in(history, verdict, healthy), GeometryDeclineWarning, stacklevel=3)
        for verdict in self.new_notices:
            LOG.info(explain_in(history, verdict))

    def state_dict(self) -> dict[str, Any] | None:
        """Panel and states in plain values; None if nothing is judged."""
        return None if self._judge is None else {**self._judge.state_dict(), "planned": list(self._planned)}

    def load_state_dict(self, state: Mapping[str, Any] | None, history: History) -> None:
        """Continue from a saved judge.

        Args:
            state: from :meth:`state_dict`; None: from the history alone, as version 0.1.0.dev0 saved it.
            history: all measurements so far.
        """
        self.verdicts, self.new_alarms, self.new_notices = {}, [], []
        self._planned = list((state or {}).get("planned", []))
        if self._judge is not None:
            self._judge.load_state_dict(state, history)
