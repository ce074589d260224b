"""An alarm: an interval of measurements in which the panel is declining; and the alarms that a history has recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from geomonitor.alarms.verdict import Verdict
from geomonitor.history.history import History
from geomonitor.history.records import ALARM


class Alarm(NamedTuple):
    """An alarm from the measurement that raised it to the one that ended it."""

    layer: str
    step: int
    """optimiser steps at the measurement that raised it"""
    epoch: int | None
    """None where epochs are not known"""
    end_step: int | None
    """first measurement without the alarm; None: it lasts to the end"""
    verdict: Verdict | None
    """at the measurement that raised it; None if only the alarm was recorded, not the verdict"""


def intervals(layer: str, judged: Iterable[tuple[int, int | None, bool, Verdict | None]]) -> list[Alarm]:
    """The alarms of a layer, in order.

    Args:
        layer: alias of the layer.
        judged: of each measurement, in order: step, epoch, whether the panel is declining, and the verdict.
    """
    alarms: list[Alarm] = []
    for step, epoch, declined, verdict in judged:
        running = bool(alarms) and alarms[-1].end_step is None
        if declined and not running:
            alarms.append(Alarm(layer, step, epoch, None, verdict))
        elif running and not declined:
            alarms[-1] = alarms[-1]._replace(end_step=step)
    return alarms


def recorded_alarms(history: History, layer: str) -> list[Alarm]:
    """The alarms that were raised while a run was measured; a failed measurement (NaN) ends none.

    >>> from geomonitor import Record
    >>> records = [Record(step, None, "fc", "alarm", float(5 < step < 20)) for step in (0, 10, 15, 20)]
    >>> recorded_alarms(History(records), "fc")
    [Alarm(layer='fc', step=10, epoch=None, end_step=20, verdict=None)]
    """
    series = history.series(layer, ALARM)
    rows = zip(series.steps.tolist(), series.epochs.tolist(), series.values.tolist(), strict=True)
    known = ((step, epoch_of(epoch), value == 1, None) for step, epoch, value in rows if math.isfinite(value))
    return intervals(layer, known)


def epoch_of(epoch: float) -> int | None:
    """An epoch of a series: None if it is not known."""
    return int(epoch) if math.isfinite(epoch) else None
