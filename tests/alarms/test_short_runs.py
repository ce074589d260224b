"""Runs that are short, measured several times an epoch, or begin with pretrained weights: when they can be judged."""

from __future__ import annotations

import dataclasses
import logging
import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.adapter import Adapter
from geomonitor.alarms.judge import Judge, _both, replay
from geomonitor.alarms.outlook import first_alarm, outlook
from geomonitor.alarms.panel import Panel
from geomonitor.alarms.status import status_of
from geomonitor.alarms.verdict import Verdict

WATCHED = ["dimension", "numerical_rank", "mean_norm", "cdnv", "accuracy"]


def judged(levels, *, an_epoch=1, panel=Panel()):
    """Numbers, from 1, of the measurements with a notice and with an alarm; CDNV alone stays as it is."""
    judge = Judge(panel.resolve(WATCHED))
    notices, alarms = [], []
    for number, level in enumerate(levels):
        value = {"cdnv": 1.0} | dict.fromkeys(("dimension", "numerical_rank", "mean_norm", "accuracy"), level)
        values = {name: (value[name], math.nan, math.nan) for name in WATCHED}
        verdict = judge.update("fc", 10 * number, number // an_epoch, values)
        assert verdict.noticed or not verdict.declined
        notices += [number + 1] if verdict.noticed else []
        alarms += [number + 1] if verdict.declined else []
    return notices, alarms


@pytest.mark.parametrize("an_epoch", [1, 2, 4])
def test_more_measurements_never_find_a_large_decline_later(an_epoch):
    levels = [100.0] * 6 * an_epoch + [60.0] * 4 * an_epoch
    _, alarms = judged(levels, an_epoch=an_epoch)
    assert alarms[0] == 6 * an_epoch + 2


def test_a_decline_within_the_warm_up_does_not_prolong_it():
    falling = [100 * 0.985**n for n in range(14)]  # never settled: the warm-up for notices is not over
    assert judged(falling[:12]) == ([], [])
    notices, alarms = judged([*falling[:9], *(0.5 * level for level in falling[9:])])
    assert notices[0] == alarms[0] == 11
    assert judged([*falling[:9], *(0.98 * level for level in falling[9:11])])[1] == []  # too small


def test_the_status_names_what_is_judged_before_the_early_fall_is_over():
    names = ("dimension", "numerical_rank", "mean_norm", "accuracy")

    def status(levels):
        return status_of(gm.History(gm.Record(n, n, "fc", name, v) for n, v in enumerate(levels) for name in names))

    falling, steady = [100 * 0.985**n for n in range(8)], [100.0] * 8
    assert status(falling[:6]).state == "early"
    assert (status(falling).state, "size of an alarm" in status(falling).headline) == ("healthy", True)
    assert (status(steady).state, "size of an alarm" in status(steady).headline) == ("healthy", False)


def test_of_an_epoch_of_four_measurements_a_small_decline_waits_for_six_epochs():
    notices, alarms = judged([100.0] * 12 + [95.0] * 4, an_epoch=4)
    assert notices == alarms == []
    notices, alarms = judged([100.0] * 25 + [95.0] * 4, an_epoch=4)
    assert notices
    assert alarms == []


def test_pretrained_weights_are_judged_from_the_first_measurement_on():
    pretrained = Panel(pretrained=True)
    assert judged([100.0, 60.0, 60.0, 60.0, 60.0], panel=pretrained) == ([], [])  # nothing tells it from noise
    assert judged([100.0, 100.1, 100.0, 60.0, 60.0], panel=pretrained) == ([4, 5], [5])  # a plain change: at once
    assert judged([100.0, 100.0, 99.5, 100.2, 101.0], panel=pretrained) == ([], [])
    assert judged([100.0, 60.0, 60.0]) == ([], [])
    assert first_alarm(pretrained.resolve(WATCHED)) == 5
    assert first_alarm(Panel(["dimension"], pretrained=True).resolve(["dimension"])) == 3  # it has a sampling error


def test_a_panel_for_pretrained_weights_goes_through_a_file():
    panel = Panel(pretrained=True).resolve(WATCHED)
    again = Panel.from_dict(panel.to_dict())
    assert again == panel
    assert again.resolve(WATCHED) == panel
    assert "pretrained" not in Panel().to_dict()
    with pytest.raises(gm.InputError, match="detector with a warm-up"):
        Panel(("dimension",), gm.Cusum(), pretrained=True).resolve(["dimension"])
    with pytest.raises(gm.InputError, match="pretrained"):
        Panel(pretrained="yes")


def test_a_saved_judge_goes_on_with_its_sizes():
    levels = [100.0] * 7 + [60.0] * 3
    records = [
        gm.Record(10 * n, n // 4, "fc", marker, level)
        for n, level in enumerate(levels)
        for marker in ("dimension", "numerical_rank", "mean_norm", "accuracy")
    ]
    whole = gm.History(records)
    panel = Panel().resolve(whole.markers("fc"))
    (alarm,) = replay(whole, "fc", panel)
    assert alarm.step == 80
    first = Judge(panel)
    first.rebuild(gm.History([record for record in records if record.step <= 70]))
    later = Judge(panel)
    later.load_state_dict(first.state_dict(), whole)
    values = dict.fromkeys(("dimension", "numerical_rank", "mean_norm", "accuracy"), (60.0, math.nan, math.nan))
    assert not later.verdict("fc").declined
    assert later.update("fc", 80, 2, values).declined
    older = first.state_dict() | {"version": 2}
    again = Judge(panel)
    again.load_state_dict(older, whole)  # of another version: judged anew by the history
    assert again.verdict("fc").declined


@pytest.mark.parametrize(
    ("panel", "planned", "steps", "can", "words"),
    [
        (Panel(), 20, None, True, "measurement 8 of 20"),
        (Panel(), 8, None, True, "measurement 8 of 8"),
        (Panel(), 7, None, False, "every_n_steps"),
        (Panel(), None, None, True, "measurement 8 on"),
        (Panel(), 4, 800, False, "every_n_steps=50"),
        (Panel(), 4, None, False, "pretrained=True"),
        (Panel(pretrained=True), 5, None, True, "measurement 5 of 5"),
        (Panel(pretrained=True), 2, 6, False, "every_n_steps=1)"),
    ],
)
def test_the_sentence_at_the_start(panel, planned, steps, can, words):
    found = outlook(panel.resolve(WATCHED), planned, steps)
    assert found is not None
    assert found[0] is can
    assert words in found[1]
    assert ("pretrained" in found[1]) == (not can and not panel.pretrained)


def test_of_an_unknown_detector_nothing_is_known():
    assert outlook(Panel(("dimension",), gm.Cusum()).resolve(["dimension"]), 3) is None


def probe_and_model():
    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(80, 6, generator=draw), torch.arange(80) % 4)
    torch.manual_seed(0)
    return gm.ProbeSet.from_dataset(data, per_class=20), nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def test_a_run_of_pretrained_weights_is_measured_before_its_first_step():
    probe, model = probe_and_model()
    options = {"markers": ["numerical_rank", "mean_norm", "accuracy"]}
    adapter = Adapter(probe, panel=Panel(pretrained=True), **options)
    adapter.begin(model, step=0, epochs=4, batches=5)
    adapter.measure_after_epoch(model, step=5, epoch=0)
    series = adapter.monitor.history.series("penultimate", "accuracy")
    assert series.steps.tolist() == [0, 5]
    assert math.isnan(series.epochs[0])
    assert series.epochs[1] == 0
    state = adapter.state_dict()
    resumed = Adapter(probe, panel=Panel(pretrained=True), **options)
    resumed.load_state_dict(state)
    assert not resumed.monitored.due_at_start
    resumed.begin(model, step=5, epochs=4, batches=5)
    assert resumed.monitor.history.series("penultimate", "accuracy").steps.tolist() == [0, 5]
    plain = Adapter(probe, **options)
    plain.begin(model, step=0, epochs=4, batches=5)
    assert plain.monitor.history.measurements == 0


def test_the_points_of_a_validation_are_not_there_before_the_first_step():
    probe = gm.ValidationProbe(classes=4, per_class=10)
    run = gm.MonitoredRun(gm.GeometryMonitor(probe, panel=Panel(pretrained=True)))
    assert not run.due_at_start


@pytest.mark.parametrize(
    ("cadence", "epochs", "steps", "planned"),
    [
        ({"every_n_epochs": 2}, 5, None, 3),  # after epochs 0, 2 and 4
        ({"every_n_epochs": 2}, 4, 400, 2),
        ({"every_n_steps": 30}, 5, 100, 3),
        ({"every_n_steps": 30}, 5, None, None),
        ({}, None, 100, None),
    ],
)
def test_how_many_measurements_a_run_has(cadence, epochs, steps, planned):
    run = gm.MonitoredRun(gm.GeometryMonitor(probe_and_model()[0]), **cadence)
    assert run.planned_measurements(epochs, steps) == planned


def test_of_both_verdicts_the_sizes_decide_on_the_alarm():
    notice = Verdict(True, "fc", "cdnv", 3.0, 2.0, 0.1, checks=1, noticed=True, pending=False, agreeing=("accuracy",))
    sized = Verdict(True, "fc", "dimension", 1.0, 2.0, 0.1, checks=2, noticed=True, agreeing=("mean_norm",))
    low = [
        Verdict(True, "fc", "dimension", checks=1),
        Verdict(True, "fc", "cdnv", checks=1),
        Verdict(False, "fc", "accuracy"),
    ]
    alarm = _both(notice, sized, low)
    assert (alarm.declined, alarm.marker, alarm.agreeing) == (True, "dimension", ("mean_norm", "cdnv"))
    alone = _both(notice, sized._replace(declined=False, pending=True), low)
    assert (alone.declined, alone.noticed, alone.pending, alone.marker) == (False, True, True, "cdnv")
    early = _both(notice._replace(noticed=False, reference=math.nan), sized._replace(declined=False), low)
    assert (early.noticed, early.settled, early.marker) == (False, False, "dimension")


def test_the_start_of_a_run_logs_from_when_it_can_be_judged(caplog):
    probe, model = probe_and_model()
    run = gm.MonitoredRun(gm.GeometryMonitor(probe), every_n_steps=10)
    with caplog.at_level(logging.INFO, "geomonitor"):
        run.start(model, epochs=5, steps=500)
        run.start(model, epochs=5, steps=50)
        gm.MonitoredRun(gm.GeometryMonitor(probe, panel=None)).start(model, epochs=2)
        gm.MonitoredRun(gm.GeometryMonitor(probe)).start(model, step=30, epochs=20)
        gm.MonitoredRun(gm.GeometryMonitor(probe, panel=Panel(pretrained=True))).start(model, epochs=4)
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    levels = [(level, text) for level, text in found if "alarm" in text]
    assert [level for level, _ in levels] == ["INFO", "WARNING", "INFO", "INFO"]
    assert "measurement 8 of 50" in levels[0][1]
    assert "planned for 5 measurements" in levels[1][1]
    assert "every_n_steps=3" in levels[1][1]
    assert "measurement 5 of 5" in levels[3][1]
    with pytest.raises(gm.InputError, match="epochs"):
        run.start(model, epochs=0)


FINE_TUNING = {
    "dimension": [2.0, 2.032, 4.316, 5.923, 6.727, 6.913, 6.879, 3.828, 3.537, 2.813, 2.117, 2.303],
    "participation_ratio_per_class": [3.75, 3.96, 5.11, 5.37, 6.08, 7.02, 7.53, 5.0, 3.98, 2.52, 2.45, 2.25],
    "mean_norm": [3.86, 2.5, 3.82, 7.62, 13.7, 18.4, 22.8, 95.7, 113.5, 122.1, 114.8, 99.4],
    "accuracy": [0.111, 0.322, 0.467, 0.567, 0.722, 0.778, 0.844, 0.6, 0.311, 0.311, 0.322, 0.389],
}
"""EfficientNet-lite0 on digits, two measurements an epoch; from the seventh on the learning rate is sixty times as
high, and accuracy on new classes falls from .88 to .48."""


@pytest.mark.parametrize("recent_noise", [True, False])
def test_a_steep_rise_at_the_start_of_fine_tuning_is_no_noise(recent_noise):
    panel = Panel(pretrained=True).resolve([*FINE_TUNING, "numerical_rank"])
    detector = dataclasses.replace(panel.detector, recent_noise=recent_noise)
    judge = Judge(dataclasses.replace(panel, detector=detector, pretrained=False))  # else it would be set again
    alarms, notices = [], []
    for number in range(12):
        values = {name: (levels[number], math.nan, math.nan) for name, levels in FINE_TUNING.items()}
        values["dimension"] = (FINE_TUNING["dimension"][number], 0.07, 0.1)
        verdict = judge.update("fc", 10 * number, number // 2, values)
        alarms += [number] if verdict.declined else []
        notices += [number] if verdict.noticed else []
    assert alarms[:1] == ([9] if recent_noise else [])
    assert min(notices) >= 7  # the fall of the norm in the first steps is none
