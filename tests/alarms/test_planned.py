"""Notices and alarms, planned changes and follow-up measurements."""

from __future__ import annotations

import json
import logging
import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor import History, Record
from geomonitor._warnings import WarnOnce
from geomonitor.alarms.follow_up import LONGEST, FollowUp
from geomonitor.alarms.harm import ALARM_AT, ALARMS_IN_THE_BENCH, NOTICES_IN_THE_BENCH
from geomonitor.alarms.judge import Judge, judge_history, replay
from geomonitor.alarms.live import LiveJudge
from geomonitor.alarms.panel import DEFAULT_WATCH
from geomonitor.alarms.recipe import changes, recipe_of
from geomonitor.alarms.verdict import Verdict
from geomonitor.alarms.words import explain

LEVELS = {
    "dimension": 2.0, "capacity": 0.5, "numerical_rank": 100.0, "cdnv": 0.3,
    "participation_ratio_per_class": 20.0, "mean_norm": 5.0, "accuracy": 0.95,
}  # fmt: skip


def measured(**factors: float) -> dict[str, tuple[float, float, float]]:
    return {name: (level * factors.get(name, 1.0), math.nan, math.nan) for name, level in LEVELS.items()}


def judged(late: dict[str, float], *, onset: int = 9, count: int = 14, restart: int | None = None) -> list[Verdict]:
    judge = Judge(gm.Panel().resolve(DEFAULT_WATCH))
    found = []
    for check in range(count):
        if check == restart:
            judge.restart(["fc"])
        found.append(judge.update("fc", 10 * check, check, measured(**(late if check >= onset else {}))))
    return found


@pytest.mark.parametrize(
    ("late", "noticed", "declined"),
    [
        ({"numerical_rank": 0.85, "mean_norm": 0.6}, True, True),
        ({"numerical_rank": 0.85, "dimension": 0.7}, True, True),
        ({"numerical_rank": 0.95, "mean_norm": 0.9}, True, False),  # small
        ({"cdnv": 1.5, "participation_ratio_per_class": 0.5}, True, False),  # not of a kind that harm comes with
        ({"numerical_rank": 0.5}, False, False),  # one family alone
        ({}, False, False),
    ],
)
def test_small_changes_are_notices_and_large_ones_alarms(late, noticed, declined):
    last = judged(late)[-1]
    assert (last.noticed, last.declined) == (noticed, declined)


def test_one_measurement_alone_is_no_alarm_but_pending():
    found = judged({"numerical_rank": 0.5, "mean_norm": 0.5}, count=11)
    assert [v.pending for v in found[8:]] == [False, True, False]
    assert [v.declined for v in found[8:]] == [False, False, True]


def test_the_size_is_what_two_measurements_in_a_row_exceeded():
    judge, found = Judge(gm.Panel(("dimension",), gm.DropFromReference())), []
    for check, value in enumerate([2.0] * 8 + [1.0, 1.6, 1.7, 1.7, 2.0]):
        found.append(judge.update("fc", check, check, {"dimension": (value, math.nan, math.nan)}).size)
    assert found[8:] == pytest.approx([0, 0.2, 0.2, 0.2, 0.0])


def test_a_planned_change_starts_the_reference_anew_and_what_falls_later_is_found():
    late = {"numerical_rank": 0.5, "mean_norm": 0.5}
    assert not any(v.declined or v.noticed for v in judged(late, count=30, restart=9))
    judge = Judge(gm.Panel().resolve(DEFAULT_WATCH))
    for check in range(30):
        if check == 9:
            judge.restart(["fc"])
        factors = dict.fromkeys(late, (0.5 if check >= 9 else 1) * (0.5 if check >= 22 else 1))
        verdict = judge.update("fc", 10 * check, check, measured(**factors))
    assert verdict.declined
    assert verdict.since_epoch == 22


def history_of_a_fall(*, announced: bool) -> History:
    """Rank and norm halve at measurement 9 and stay there; with or without an announcement of it."""
    records = []
    for check in range(16):
        late = {"numerical_rank": 0.5, "mean_norm": 0.5} if check >= 9 else {}
        records += [Record(10 * check, check, "fc", name, value) for name, (value, *_) in measured(**late).items()]
        records += [Record(10 * check, check, "", "announced", 1.0)] * (announced and check == 9)
    return History(records)


@pytest.mark.parametrize("announced", [False, True])
def test_replay_and_a_resumed_judge_know_of_announcements(announced):
    history = history_of_a_fall(announced=announced)
    assert len(replay(history, "fc", gm.Panel())) == (not announced)
    judge = Judge(gm.Panel().resolve(DEFAULT_WATCH))
    judge.rebuild(history)
    assert judge.verdict("fc").declined == (not announced)
    assert judge_history(history, "fc", gm.Panel()).declined == (not announced)


@pytest.mark.parametrize("announced", [False, True])
def test_a_live_judge_starts_anew_after_an_announcement(announced):
    live, history, alarms = LiveJudge(gm.Panel().resolve(DEFAULT_WATCH), "raise", WarnOnce()), History(), []
    for check in range(16):
        if announced and check == 9:
            live.announce("mixup on")
        late = {"numerical_rank": 0.5, "mean_norm": 0.5} if check >= 9 else {}
        values = {"fc": {name: (value, error) for name, (value, error, _) in measured(**late).items()}}
        found = live.update(10 * check, check, values, {}, history)
        alarms.append(next(record.value for record in found if record.marker == "alarm"))
    assert any(alarms) == (not announced)


def test_markers_of_one_family_count_once():
    at = {"dimension": 0.1, "capacity": 0.1, "numerical_rank": 0.2}
    judge = Judge(gm.Panel(DEFAULT_WATCH, votes=2, alarm_at=at).resolve(DEFAULT_WATCH))
    for check in range(14):
        late = {"dimension": 0.5, "capacity": 0.5, "cdnv": 1.5} if check >= 9 else {}
        verdict = judge.update("fc", 10 * check, check, measured(**late))
    assert (verdict.noticed, verdict.declined) == (True, False)


@pytest.mark.parametrize(("rise", "pending"), [(1.5, True), (1.2, False)])  # 1 - 1 / 1.5 is a third
def test_a_rise_has_the_size_of_the_fall_of_its_reciprocal(rise, pending):
    at = {"cdnv": 0.25, "numerical_rank": 0.2}
    judge = Judge(gm.Panel(DEFAULT_WATCH, votes=2, alarm_at=at).resolve(DEFAULT_WATCH))
    for check in range(11):
        late = {"cdnv": rise, "numerical_rank": 0.5} if check >= 9 else {}
        verdict = judge.update("fc", 10 * check, check, measured(**late))
        if check == 9:
            assert verdict.pending == pending
    assert verdict.declined == pending


def probe_and_model() -> tuple[gm.ProbeSet, nn.Module]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 4
    points = torch.randn(4, 6, generator=generator)[labels] * 3 + torch.randn(80, 6, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    return gm.ProbeSet.from_dataset(TensorDataset(points, labels), per_class=20), model


def test_an_announcement_is_logged_recorded_saved_and_replayed(caplog):
    probe, model = probe_and_model()
    monitor = gm.GeometryMonitor(probe)
    monitor.measure(model, step=1)
    with caplog.at_level(logging.INFO, "geomonitor"):
        monitor.announce("mixup on")
    assert "planned change: mixup on" in caplog.text
    restored = gm.GeometryMonitor(probe)
    restored.load_state_dict(monitor.state_dict())
    for one in (monitor, restored):
        one.measure(model, step=2)
        one.measure(model, step=3)
        assert one.history.series("", "announced").steps.tolist() == [2]
    assert replay(monitor.history, "penultimate", gm.Panel()) == []
    with pytest.raises(gm.InputError, match="mixup on"):
        monitor.announce("  ")


def test_notices_are_logged_and_no_warning(caplog):
    verdict = judged({"numerical_rank": 0.95, "mean_norm": 0.9})[-1]
    text = explain(verdict, ["weight_decay 0 -> 0.1 between steps 80 and 90"])
    assert text.startswith("geometry notice: ")
    assert "No alarm" in text
    assert "weight_decay" in text
    assert "{} of {} runs with a notice".format(*NOTICES_IN_THE_BENCH) in text
    alarm = explain(judged({"numerical_rank": 0.5, "mean_norm": 0.5})[-1])
    assert "{} of {} such alarms".format(*ALARMS_IN_THE_BENCH) in alarm


@pytest.mark.parametrize(
    "panel",
    [
        gm.Panel(("dimension",), gm.DropFromReference()),
        gm.Panel(DEFAULT_WATCH, votes=2, alarm_at={"dimension": 0.1, "numerical_rank": 0.05}),
    ],
)
def test_rates_of_the_bench_are_quoted_for_the_default_panel_only(panel):
    judge = Judge(panel.resolve(DEFAULT_WATCH))
    for check in range(14):
        late = {"numerical_rank": 0.5, "dimension": 0.5} if check >= 9 else {}
        verdict = judge.update("fc", 10 * check, check, measured(**late))
    assert verdict.declined
    assert "in small runs of other tasks" not in explain(verdict)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"alarm_at": {"dimension": 0.1}}, "can never make an alarm"),  # one family of two votes
        ({"watch": ("nc1", "rankme"), "votes": 2, "alarm_at": {"nc1": 0.1}}, "can never make an alarm"),
        ({"watch": ("nc1",), "detector": lambda series: None, "alarm_at": {"nc1": 0.1}}, "measures the size"),
    ],
)
def test_sizes_with_which_there_can_be_no_alarm_are_refused(wrong, text):
    with pytest.raises(gm.InputError, match=text):
        gm.Panel(**wrong).resolve([*DEFAULT_WATCH, "nc1"])


def test_where_the_sizes_of_the_bench_could_never_alarm_each_notice_is_an_alarm():
    names = ["capacity", "cdnv", "participation_ratio_per_class", "accuracy"]
    assert gm.Panel().resolve(names).alarm_at == {}
    assert gm.Panel().resolve([*names, "numerical_rank"]).alarm_at == ALARM_AT


def test_what_changes_in_the_recipe_is_seen():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = recipe_of(model, [optimizer], TensorDataset(torch.zeros(8, 4)))
    assert changes(before, recipe_of(model, [optimizer], TensorDataset(torch.ones(8, 4)))) == {}
    model[1].p = 0.3
    model[0].requires_grad_(False)
    after = recipe_of(model, [torch.optim.AdamW(model.parameters())], TensorDataset(torch.zeros(9, 4)))
    assert changes(before, after) == {
        "optimizer": "SGD -> AdamW", "trainable parameters": "30 -> 10", "dropout": "0.1 -> 0.3",
        "training data": "TensorDataset, 8 items -> TensorDataset, 9 items",
    }  # fmt: skip


@pytest.mark.parametrize(("expect", "announced"), [((), []), (("learning_rate",), [20])])
def test_a_run_announces_what_it_sees(expect, announced):
    probe, model = probe_and_model()
    run = gm.MonitoredRun(gm.GeometryMonitor(probe, markers=["nc1"], panel=gm.Panel(("nc1",))), expect=expect)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.start(model)
    run.measure(model, step=10, epoch=0, optimizers=[optimizer])
    optimizer.param_groups[0]["lr"] = 0.01
    run.measure(model, step=20, epoch=1, optimizers=[optimizer])
    assert run.monitor.history.series("", "announced").steps.tolist() == announced
    other = torch.optim.AdamW(model.parameters(), lr=0.01)
    run.measure(model, step=30, epoch=2, optimizers=[other])
    assert run.monitor.history.series("", "announced").steps.tolist() == [*announced, 30]


def test_another_run_of_the_same_callback_is_no_planned_change():
    probe, model = probe_and_model()
    run = gm.MonitoredRun(gm.GeometryMonitor(probe, markers=["nc1"], panel=None))
    run.start(model)
    run.measure(model, step=10, epoch=0, optimizers=[torch.optim.SGD(model.parameters(), lr=0.1)])
    run.start(model, step=0)
    run.measure(model, step=10, epoch=0, optimizers=[torch.optim.AdamW(model.parameters())])
    assert len(run.monitor.history.series("", "announced").steps) == 0


def test_a_follow_up_comes_half_an_interval_later_once():
    later, pending = FollowUp(), [Verdict(False, "fc", "dimension", pending=True)]
    later.after(0, [])
    later.after(1000, pending)
    assert [later.due(step) for step in (1000 + LONGEST - 1, 1000 + LONGEST, 1000 + LONGEST + 1)] == [
        False,
        True,
        False,
    ]
    later.after(1000 + LONGEST, pending)
    assert later.due(1000 + 2 * LONGEST)
    later.after(1000 + 2 * LONGEST, pending)  # a follow-up itself is not followed up
    assert not later.due(9000)
    off = FollowUp(on=False)
    off.after(0, [])
    off.after(10, pending)
    assert not off.due(15)


@pytest.mark.parametrize("what", ["dropout", "learning_rate"])
def test_what_changes_at_every_measurement_is_no_plan(what):
    probe, model = probe_and_model()
    model.append(nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = gm.MonitoredRun(
        gm.GeometryMonitor(probe, markers=["nc1"], panel=gm.Panel(("nc1",))), expect=["learning_rate"]
    )
    run.start(model)
    caught = []
    for epoch in range(8):
        if what == "dropout":
            model[-1].p = 0.5 - 0.05 * epoch
        else:
            optimizer.param_groups[0]["lr"] *= 0.5
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run.measure(model, step=10 * (epoch + 1), epoch=epoch, optimizers=[optimizer])
        caught += [str(warning.message) for warning in found if "changes at every" in str(warning.message)]
    assert run.monitor.history.series("", "announced").steps.tolist() == [20, 30]
    assert len(caught) == 1
    assert what in caught[0]


def test_an_announcement_is_kept_without_a_panel():
    probe, model = probe_and_model()
    monitor = gm.GeometryMonitor(probe, markers=["nc1"], panel=None)
    monitor.announce("mixup on")
    monitor.measure(model, step=1)
    monitor.measure(model, step=2)
    assert monitor.history.series("", "announced").steps.tolist() == [1]


def test_a_resumed_run_follows_up_what_was_pending():
    probe, model = probe_and_model()
    first, second = (gm.MonitoredRun(gm.GeometryMonitor(probe, markers=["nc1"], panel=None)) for _ in range(2))
    first.start(model)
    first.measure(model, step=10, epoch=0)
    first.follow_up.after(20, [Verdict(False, "fc", "nc1", pending=True)])
    second.load_state_dict(first.state_dict())
    second.start(model, step=20)
    assert [second.due_after_batch(step) for step in (24, 25, 26)] == [False, True, False]


def test_a_follow_up_is_no_epoch_of_its_own():
    probe, model = probe_and_model()
    run = gm.MonitoredRun(gm.GeometryMonitor(probe, markers=["nc1"], panel=gm.Panel(("nc1",))))
    run.start(model)
    for epoch in range(2):
        assert run.due_after_epoch(epoch)
        run.measure(model, step=10 * (epoch + 1), epoch=epoch)
    run.follow_up.after(30, [Verdict(False, "fc", "nc1", pending=True)])
    assert run.due_after_batch(35)
    run.measure(model, step=35, epoch=2)
    assert run.due_after_epoch(2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alarm_at": {"dimension": 0.0}},
        {"alarm_at": {"dimension": math.nan}},
        {"alarm_at": 0.1},
        {"alarm_at": {1: 0.1}},
    ],
)
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(gm.InputError, match="alarm_at"):
        gm.Panel(**wrong)


def test_other_settings_that_make_no_sense_are_refused():
    monitor = gm.GeometryMonitor(probe_and_model()[0])
    for wrong in ({"expect": ["mixup"]}, {"expect": 3}, {"confirm": "yes"}):
        with pytest.raises(gm.InputError, match=next(iter(wrong))):
            gm.MonitoredRun(monitor, **wrong)


def test_a_panel_of_its_own_has_alarms_only_and_an_older_file_is_judged_as_it_was():
    assert gm.Panel(("dimension",)).resolve(["dimension"]).alarm_at == {}
    saved = gm.Panel().resolve(DEFAULT_WATCH).to_dict()
    assert gm.Panel.from_dict(json.loads(json.dumps(saved))).alarm_at == ALARM_AT
    del saved["alarm_at"]
    assert gm.Panel.from_dict(saved).alarm_at == {}
