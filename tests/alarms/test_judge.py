"""A saved run judged again: the alarms of the online detector, step by step, and other settings."""

from __future__ import annotations

import numpy as np
import pytest

from geomonitor import Cusum, DropFromReference, History, InputError, Record, Trend, Verdict
from geomonitor.alarms.detectors import make_detector
from geomonitor.alarms.judge import judge_history, replay
from geomonitor.alarms.panel import Panel
from geomonitor.cli.app import run
from tests.alarms.detectors.synthetic import FAULT, RAMP, TIME, WARM_UP, noisy


def history_of(**markers) -> History:
    return History(
        Record(10 * n, n, "fc", marker, float(value))
        for marker, values in markers.items()
        for n, value in enumerate(values)
    )


RECOVERS = np.where((TIME >= 15) & (TIME < 25), 1.2, 2.0)


@pytest.mark.parametrize("detector", [DropFromReference(), Cusum(), Trend(), lambda s: DropFromReference()(s)])
@pytest.mark.parametrize("votes", [1, 2])
def test_replay_says_what_was_said_online(detector, votes):
    watch = ["dimension", "rankme"]
    whole = history_of(dimension=noisy(WARM_UP * RAMP, 2), rankme=noisy(RECOVERS, 3))
    online, before = [], False
    for n in range(len(TIME)):
        seen = History(record for record in whole if record.step <= 10 * n)
        verdict = judge_history(seen, "fc", Panel(watch, detector, votes))
        if verdict.declined != before:
            online.append((10 * n, verdict if verdict.declined else None))
        before = verdict.declined
    found = [
        event
        for alarm in replay(whole, "fc", Panel(watch, detector, votes))
        for event in ((alarm.step, alarm.verdict), (alarm.end_step, None))
        if event[0] is not None
    ]
    assert found == online
    assert found


def test_the_end_of_an_alarm_is_known():
    (alarm,) = replay(history_of(dimension=RECOVERS), "fc", Panel(["dimension"], DropFromReference(patience_checks=2)))
    assert (alarm.step, alarm.epoch, alarm.end_step) == (160, 16, 250)
    assert isinstance(alarm.verdict, Verdict)


def test_what_is_not_there_is_named():
    with pytest.raises(InputError, match="no values of rankme for the layer 'fc'"):
        replay(history_of(dimension=FAULT), "fc", Panel(["dimension", "rankme"], DropFromReference()))
    with pytest.raises(InputError, match="one vote"):
        Panel(["dimension", "utility"], DropFromReference(), 2)


def test_detectors_by_name_and_setting():
    assert make_detector("cusum", drop=0.2) == Cusum(drop=0.2)
    with pytest.raises(InputError, match="no detector is called 'cumsum'; there are drop_from_reference"):
        make_detector("cumsum")
    with pytest.raises(InputError, match=r"does not take these settings.*drops"):
        make_detector("cusum", drops=0.2)
    with pytest.raises(InputError, match="reference"):
        make_detector("reference_runs")


@pytest.fixture
def saved(tmp_path):
    history = history_of(dimension=WARM_UP * FAULT)
    history.append([Record(10 * n, n, "", "weight_decay", 0.5 if n >= 20 else 0.01) for n in range(40)])
    history.open(tmp_path / "geometry.csv")
    return tmp_path


def test_the_command_prints_the_verdicts(saved, capsys):
    assert run(["replay", str(saved), "--detector", "drop_from_reference"]) == 1
    told = capsys.readouterr().out
    assert "alarm at epoch 2" in told
    assert "to the end" in told
    assert "dimension of 'fc' fell by 3" in told
    assert "weight_decay 0.01 -> 0.5 between steps 190 and 200" in told


def test_other_settings_find_nothing(saved, capsys):
    assert run(["replay", str(saved), "--set", "drop=0.6"]) == 0
    assert "fc: no alarm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--detector", "nothing"], "no detector is called"),
        (["--set", "drop"], "--set takes NAME=VALUE"),
        (["--set", "drop=2"], r"drop lies in"),
        (["--set", "dorp=0.2"], "does not take these settings"),
        (["--watch", "rankme"], "no values of rankme"),
        (["--layer", "other"], "was measured in 'other'"),
    ],
)
def test_bad_input_is_one_line(saved, capsys, options, told):
    assert run(["replay", str(saved), *options]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
