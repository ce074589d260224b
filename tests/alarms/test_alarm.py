"""The intervals of alarms that a history has recorded."""

from __future__ import annotations

import math

import geomonitor as gm
from geomonitor.alarms.alarm import Alarm, recorded_alarms


def test_alarms_have_a_beginning_and_an_end_and_nan_ends_none():
    values = [0, 1, math.nan, 1, 0, 0, 1]
    history = gm.History(gm.Record(step, None, "fc", "alarm", value) for step, value in enumerate(values))
    assert recorded_alarms(history, "fc") == [Alarm("fc", 1, None, 4, None), Alarm("fc", 6, None, None, None)]
    assert recorded_alarms(history, "other") == []
