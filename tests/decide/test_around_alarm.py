"""Which alarm of a run is meant, when its decline began, and the checkpoints on both sides of it."""

from __future__ import annotations

import pytest
import torch

from geomonitor import History, InputError, Record
from geomonitor.alarms.alarm import Alarm
from geomonitor.decide.around_alarm import AroundAlarm, around_alarm
from geomonitor.history.runs import Run, load_run
from geomonitor.history.saved import SavedCheckpoint
from tests.runs_on_disk import FAULT, MEASUREMENTS, STEPS, write_run


def of_alarms(tmp_path, **layers):
    """A run that recorded nothing but, by layer, whether an alarm was on at each measurement."""
    records = [
        Record(10 * (n + 1), n, layer, "alarm", float(mark == "x"))
        for layer, marks in layers.items()
        for n, mark in enumerate(marks)
    ]
    return Run("mine", tmp_path / "geometry.csv", History(sorted(records, key=lambda each: each.step)), {})


def found(run, layer=None):
    around = around_alarm(run, layer)
    return around.alarm.layer, around.alarm.step, around.since_step


def test_an_alarm_that_lasts_comes_before_a_later_one_and_of_several_the_latest(tmp_path):
    assert found(of_alarms(tmp_path, a="..xx..", b=".x.xx.")) == ("b", 40, 40)
    assert found(of_alarms(tmp_path, a="..xxxx", b="...xx.")) == ("a", 30, 30)
    assert found(of_alarms(tmp_path, a="..xxxx", b="....xx")) == ("b", 50, 50)
    assert found(of_alarms(tmp_path, a="..xxxx", b="....xx"), "a") == ("a", 30, 30)


def test_no_alarm_at_all_and_none_of_a_layer(tmp_path):
    with pytest.raises(InputError, match="recorded no alarm: name the checkpoints"):
        around_alarm(of_alarms(tmp_path, a="....", b="...."))
    with pytest.raises(InputError, match="recorded no alarm of 'a': name the checkpoints"):
        around_alarm(of_alarms(tmp_path, a="....", b="..x."), "a")


def faulty(folder, *, over=False, second=False):
    """A run whose dimension falls at ``FAULT``; the alarm came one measurement later, and may be over."""
    run = load_run(write_run(folder, faulty=True, layer="fc"))
    records = []
    for each in run.history:
        late = each.step > STEPS * (MEASUREMENTS - 2)
        records.append(each._replace(value=0.0) if over and each.marker == "alarm" and late else each)
        if second and each.layer == "fc":
            records.append(each._replace(layer="other"))
    return run._replace(history=History(records))


@pytest.mark.parametrize("how", [{}, {"over": True}, {"second": True}], ids=["lasts", "over", "two layers"])
def test_the_decline_began_before_the_alarm(tmp_path, how):
    run = faulty(tmp_path, **how)
    for layer in ("fc", "other") if "second" in how else ("fc",):
        assert found(run, layer) == (layer, STEPS * (FAULT + 2), STEPS * (FAULT + 1))


def around(folder, *, alarm=100, since=80, kept=None):
    history = History([Record(10, 0, "fc", "alarm", 0.0)])
    run = Run("mine", folder / "geometry.csv", history, {}, None, kept)
    return AroundAlarm(run, Alarm("fc", alarm, None, None, None), since)


def saved(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        torch.save({"weight": torch.ones(1)}, folder / name)


def test_the_files_nearest_to_the_decline_and_to_the_alarm_are_taken(tmp_path):
    saved(tmp_path, "step_9.pt", "deep/down/step_79.ckpt", "step_80.pth", "step_99.pt", "step_100.pt", "step_101.pt")
    assert around(tmp_path).before() == tmp_path / "deep/down/step_79.ckpt"
    assert around(tmp_path).after() == tmp_path / "step_100.pt"


def test_other_files_are_passed_over(tmp_path):
    saved(tmp_path, "step_50.pt", "step_120.pt", "step_70.bin", "step_110.bin", "last.pt")
    (tmp_path / "step_75.pt").write_bytes(b"no checkpoint")
    (tmp_path / "step_105.ckpt").mkdir()
    assert around(tmp_path).before() == tmp_path / "step_50.pt"
    assert around(tmp_path).after() == tmp_path / "step_120.pt"


def test_the_last_healthy_one_counts_if_it_is_there_and_from_before_the_decline(tmp_path):
    saved(tmp_path, "step_79.pt", "healthy.pt")
    kept = SavedCheckpoint(str(tmp_path / "healthy.pt"), 60)
    assert around(tmp_path, kept=kept).before() == tmp_path / "healthy.pt"
    assert around(tmp_path, kept=kept._replace(step=80)).before() == tmp_path / "step_79.pt"
    assert around(tmp_path, kept=kept._replace(path="gone.pt")).before() == tmp_path / "step_79.pt"


def test_none_on_a_side_is_a_sentence_with_the_option(tmp_path):
    saved(tmp_path, "step_90.pt")
    with pytest.raises(InputError, match=r"from before step 80, the start of the decline, lies in .*: name one by --b"):
        around(tmp_path).before()
    with pytest.raises(InputError, match=r"from the alarm at step 100 on lies in .*: name one by --after"):
        around(tmp_path).after()
