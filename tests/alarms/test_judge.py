"""A saved run judged again: the alarms of the online detector, step by step, and other settings."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch

from geomonitor import Cusum, DropFromReference, History, InputError, Record, Trend, Verdict
from geomonitor.alarms.detectors import AgreeingDrop, make_detector
from geomonitor.alarms.judge import Judge, judge_history, replay
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


VALUES = {"dimension": noisy(WARM_UP * RAMP, 2), "rankme": noisy(RECOVERS, 3), "cdnv": 1 / noisy(RECOVERS, 4)}
PANEL = Panel(tuple(VALUES), DropFromReference(), 2)


def at(place: int) -> dict[str, tuple[float, float, float]]:
    return {name: (float(values[place]), math.nan, math.nan) for name, values in VALUES.items()}


def judged(until: int, panel: Panel = PANEL) -> Judge:
    judge = Judge(panel)
    for place in range(until):
        judge.update("fc", 10 * place, place, at(place))
    return judge


def as_torch_saves(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("saved", [lambda state: json.loads(json.dumps(state)), as_torch_saves])
@pytest.mark.parametrize(
    "detector", [DropFromReference(), AgreeingDrop(), Cusum(), Trend(), DropFromReference(worse="either")]
)
@pytest.mark.parametrize("until", [0, 3, 18, 30])
def test_a_saved_judge_goes_on_as_the_unbroken_one(detector, saved, until):
    panel = Panel(tuple(VALUES), detector, 2)
    unbroken, first, second = judged(until, panel), judged(until, panel), Judge(panel)
    second.load_state_dict(saved(first.state_dict()), History())
    for place in range(until, len(TIME)):
        expected = unbroken.update("fc", 10 * place, place, at(place))
        assert repr(second.update("fc", 10 * place, place, at(place))) == repr(expected)


def test_a_repeated_part_of_a_run_is_judged_by_the_history():
    judge, history = judged(30), history_of(**{name: values[:30] for name, values in VALUES.items()})
    with pytest.raises(InputError, match="step 200 does not come after step 290: give the history"):
        judge.update("fc", 200, 20, at(20))
    history.append([Record(200, 20, "fc", name, 5.0) for name in VALUES])
    verdict = judge.update("fc", 200, 20, dict.fromkeys(VALUES, (5.0, math.nan, math.nan)), history=history)
    assert verdict == judge_history(history, "fc", PANEL)
    assert verdict != judged(30).verdict("fc")
    assert judge.update("fc", 300, 30, at(30)) == judge.verdict("fc")  # goes on after the last step


def test_a_measurement_that_is_made_twice_counts_once():
    judge, history = judged(30), history_of(**{name: values[:30] for name, values in VALUES.items()})
    again = judge.update("fc", 290, 29, at(29), history=history)
    assert repr(again) == repr(judged(30).verdict("fc"))
    with pytest.raises(InputError, match="step 290 does not come after step 290"):
        judge.update("fc", 290, 29, at(29))


@pytest.mark.parametrize("state", [None, {"version": 0}, Judge(Panel(("dimension",), Cusum())).state_dict()])
def test_a_state_that_does_not_fit_is_made_anew_by_the_history(state):
    history, judge = history_of(**VALUES), Judge(PANEL)
    judge.load_state_dict(state, history)
    assert repr(judge.verdict("fc")) == repr(judge_history(history, "fc", PANEL))


def test_layers_are_judged_by_themselves():
    judge = Judge(Panel(("dimension",), DropFromReference()))
    for place in TIME:
        low = judge.update("low", place, place, {"dimension": (2 * FAULT[place], math.nan, math.nan)})
        high = judge.update("high", place, place, {"dimension": (2.0, math.nan, math.nan)})
    assert (low.declined, high.declined) == (True, False)
    judge.rebuild(History())
    assert math.isnan(judge.verdict("low").value)


def test_a_marker_that_was_not_measured_keeps_its_verdict():
    judge = judged(40)
    before = judge.verdict("fc")
    assert judge.update("fc", 400, 40, {"other": (1.0, math.nan, math.nan)}) == before


def test_a_function_of_a_series_sees_all_of_it():
    seen = []

    def mine(series):
        seen.append((series.steps.tolist(), series.values.tolist(), series.epochs.tolist()))
        return Verdict(series.values[-1] < 2, series.layer, series.marker)

    large = 2**53  # where floats have holes
    judge = Judge(Panel(("dimension",), mine))
    assert not judge.update("fc", large, None, {"dimension": (2.0, math.nan, math.nan)}).declined
    assert judge.update("fc", large + 1, None, {"dimension": (1.0, math.nan, math.nan)}).declined
    assert seen[1][:2] == ([large, large + 1], [2.0, 1.0])
    assert all(map(math.isnan, seen[1][2]))


def test_a_function_that_fails_once_sees_the_measurement_later():
    def fails_at_two(series):
        if len(series.values) == 2:
            raise RuntimeError
        return Verdict(len(series.values) == 3, series.layer, series.marker)

    judge = Judge(Panel(("dimension",), fails_at_two))
    value = {"dimension": (2.0, math.nan, math.nan)}
    judge.update("fc", 1, 0, value)
    with pytest.raises(RuntimeError):
        judge.update("fc", 2, 1, value)
    assert judge.update("fc", 3, 2, value).declined


@pytest.mark.parametrize("panel", [Panel(), Panel(()), Panel(("dimension",), None)])
def test_a_panel_that_cannot_judge_is_refused(panel):
    with pytest.raises(InputError, match="watched markers and a detector"):
        Judge(panel)


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
