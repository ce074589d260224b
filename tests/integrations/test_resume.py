"""A run that is killed with SIGKILL and resumed ends as the unbroken run: records, alarm, verdict, stop, file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import geomonitor as gm
from tests.integrations.resumable_run import BATCHES, DECLINE_STEP, STOP_STEP, Cut, Plan, in_a_process

PLANS = {
    "every epoch": Plan({"every_n_epochs": 1}),
    "every epoch, no validation": Plan({"every_n_epochs": 1}, validate=False),
    "every 3 steps, saved every 2": Plan({"every_n_steps": 3}, save_every_n_steps=2),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return {name: in_a_process(tmp_path_factory.mktemp("whole"), plan) for name, plan in PLANS.items()}


def rows(path: Path) -> list[list[str]]:
    """Records in a file, but for their times and costs, which no two runs share."""
    kept = [record for record in gm.History.load(path) if record.layer]
    return [[repr(part) for part in record._replace(time=0.0)] for record in kept]


def saved_rows(directory: Path) -> list[list[str]]:
    """Records in the last checkpoint, which loads without pickles."""
    state = torch.load(directory / "last.ckpt", weights_only=True)["callbacks"]["GeometryCallback"]
    history = gm.History()
    history.load_state_dict(state["history"])
    kept = [record for record in history if record.layer]
    return [[repr(part) for part in record._replace(time=0.0)] for record in kept]


def resume(directory: Path, name: str, unbroken: dict[str, Any]) -> dict[str, Any]:
    """Resume a killed run and compare all that it leaves with the unbroken one."""
    result, whole = in_a_process(directory, PLANS[name]), unbroken[name]
    for what in ("records", "verdicts", "stopped_at", "stopped_because"):
        assert result[what] == whole[what], what
    assert rows(directory / "geometry.csv") == whole["records"]
    assert list(directory.rglob("geometry.csv")) == [directory / "geometry.csv"]
    return result


def findings(result: dict[str, Any]) -> list[str]:
    """The alarms without what changed at that time, for of the two runs one was resumed."""
    return [alarm.splitlines()[0] for alarm in result["alarms_told"]]


def test_the_unbroken_runs_decline_and_stop(unbroken):
    for whole in unbroken.values():
        assert DECLINE_STEP < whole["stopped_at"] <= STOP_STEP
        assert whole["stopped_because"].startswith("geometry early stopping: The representation has lost ")
        assert len(whole["alarms_told"]) == 1
    assert unbroken["every epoch"]["stopped_at"] == STOP_STEP


def test_killed_in_every_epoch(tmp_path, unbroken):
    for epoch in range(1, STOP_STEP // BATCHES):
        in_a_process(tmp_path, PLANS["every epoch"], Cut("on_train_epoch_start", epoch * BATCHES))
    assert rows(tmp_path / "geometry.csv") == saved_rows(tmp_path)
    assert findings(resume(tmp_path, "every epoch", unbroken)) == findings(unbroken["every epoch"])


def test_killed_in_mid_epoch_and_between_history_and_checkpoint(tmp_path, unbroken):
    plan = PLANS["every epoch"]
    in_a_process(tmp_path, plan, Cut("on_train_batch_end", 2 * BATCHES + 2))
    in_a_process(tmp_path, plan, Cut("on_validation_end", 5 * BATCHES))  # measured and written, not saved
    ahead, saved = rows(tmp_path / "geometry.csv"), saved_rows(tmp_path)
    assert ahead[: len(saved)] == saved
    assert {row[0] for row in ahead[len(saved) :]} == {str(5 * BATCHES)}
    in_a_process(tmp_path, plan, Cut("on_validation_end", STOP_STEP))  # the alarm was told, and is not in a checkpoint
    assert findings(resume(tmp_path, "every epoch", unbroken)) == findings(unbroken["every epoch"])


def test_killed_without_a_validation_loop(tmp_path, unbroken):
    name = "every epoch, no validation"
    for cut in (Cut("on_train_epoch_start", BATCHES), Cut("on_train_epoch_end", 3 * BATCHES),
                Cut("on_train_epoch_start", 7 * BATCHES)):  # fmt: skip
        in_a_process(tmp_path, PLANS[name], cut)
    assert findings(resume(tmp_path, name, unbroken)) == findings(unbroken[name])


def test_killed_between_steps_that_are_measured_and_steps_that_are_saved(tmp_path, unbroken):
    name = "every 3 steps, saved every 2"
    for step in (7, 15, 19, 27):  # saved at 6, 14, 18 and 26, in mid-epoch
        in_a_process(tmp_path, PLANS[name], Cut("on_train_batch_end", step))
    assert findings(resume(tmp_path, name, unbroken)) == findings(unbroken[name])


def test_a_half_written_last_line_is_said_and_repaired_by_the_resume(tmp_path, unbroken):
    in_a_process(tmp_path, PLANS["every epoch"], Cut("on_validation_end", 3 * BATCHES))
    file = tmp_path / "geometry.csv"
    file.write_bytes(file.read_bytes()[:-11])
    result = resume(tmp_path, "every epoch", unbroken)
    assert [said for said in result["said"] if "the last line was cut off" in said]
