"""History: what is written comes back digit by digit, after a kill, a resume, a full disk."""

from __future__ import annotations

import errno
import json
import math
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from geomonitor import GeomonitorWarning, History, InputError, Record

RECORDS = [
    Record(24, 0, "penultimate", "dimension", 0.1 + 0.2, 1e-17),
    Record(24, 0, "penultimate", "nc1", math.nan),
    Record(24, 0, 'a "quoted", layer', "rank", 1e300, math.nan),
    Record(48, None, "", "seconds", 0.25),
]


def test_the_latest_record_of_each_marker():
    history = History([Record(n, n, "fc", marker, float(n)) for n in range(3) for marker in ("nc1", "dimension")])
    history.append([Record(2, 2, "fc", "nc1", 9.0)])
    assert [(r.marker, r.step, r.value) for r in history.latest()] == [("nc1", 2, 9.0), ("dimension", 2, 2.0)]


def as_text(history: History) -> list[str]:
    return [repr(record) for record in history]  # NaN equals NaN as text


def test_the_file_gives_back_every_digit(tmp_path):
    history = History()
    history.open(tmp_path / "run" / "geometry.csv", {"seed": 0})
    history.append(RECORDS[:2])
    history.append(RECORDS[2:])
    assert as_text(History.load(tmp_path / "run" / "geometry.csv")) == list(map(repr, RECORDS))
    side = {"protocol": {"seed": 0}, "panel": None, "run_id": history.run_id}
    assert json.loads((tmp_path / "run" / "geometry.json").read_text()) == side


def test_every_append_is_on_disk_at_once(tmp_path):
    history = History()
    history.open(tmp_path / "h.csv")
    for n in range(1, 4):
        history.append([Record(n, n, "fc", "dimension", float(n))])
        assert len(History.load(tmp_path / "h.csv")) == n


def test_a_line_cut_off_by_a_kill_is_left_out_and_said(tmp_path):
    path = tmp_path / "h.csv"
    history = History()
    history.open(path)
    history.append(RECORDS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(GeomonitorWarning, match="cut off"):
        assert as_text(History.load(path)) == list(map(repr, RECORDS[:-1]))


def test_a_measurement_made_again_after_a_resume_counts_once(tmp_path):
    history = History([Record(10, 0, "fc", "dimension", 1.0)])
    history.open(tmp_path / "h.csv")
    history.append([Record(20, 1, "fc", "dimension", 2.0)])
    history.append([Record(20, 1, "fc", "dimension", 3.0)])
    for seen in (history, History.load(tmp_path / "h.csv")):
        assert seen.series("fc", "dimension").values.tolist() == [1.0, 3.0]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    history = History()
    history.open(tmp_path / "h.csv")
    history.append([Record(10, 0, "fc", "dimension", 1.0)])
    saved = history.state_dict()
    history.append([Record(20, 1, "fc", "dimension", 2.0)])  # the run dies here
    resumed = History()
    resumed.load_state_dict(saved)
    resumed.open(tmp_path / "h.csv")
    assert History.load(tmp_path / "h.csv").series("fc", "dimension").steps.tolist() == [10]


def test_a_new_run_does_not_overwrite_an_old_file(tmp_path):
    expected = {}
    for value in (1.0, 2.0, 3.0):
        history = History()
        history.open(tmp_path / "geometry.csv", {"seed": 0})
        history.append([Record(1, 0, "fc", "dimension", value)])
        expected[history.run_id] = [value]
    expected[tmp_path.name] = expected.pop(history.run_id)  # the latest one has the name
    kept = {p.parent.name: History.load(p).series("fc", "dimension").values.tolist() for p in tmp_path.rglob("*.csv")}
    assert kept == expected


def test_state_survives_a_weights_only_checkpoint(tmp_path):
    torch.save(History(RECORDS).state_dict(), tmp_path / "state.pt")
    restored = History()
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert as_text(restored) == list(map(repr, RECORDS))


def test_a_disk_that_fails_is_warned_of_once_and_nothing_is_lost(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    history = History()
    with pytest.warns(GeomonitorWarning, match="cannot be written"):
        history.open(blocked / "geometry.csv")
    history.append(RECORDS)  # no second warning: warnings are errors here
    assert as_text(history) == list(map(repr, RECORDS))


def measurement(step: int) -> list[Record]:
    return [Record(step, step, "fc", f"marker{n}", step + n / 7, time=step / 3) for n in range(40)]


def opened(path, steps=()) -> History:
    history = History()
    history.open(path)
    for step in steps:
        history.append(measurement(step))
    return history


def test_a_full_disk_leaves_whole_lines_and_is_caught_up_with_when_there_is_room(tmp_path):
    path = tmp_path / "h.csv"
    history = opened(path, [1])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))  # the system cuts a write off half-way
    try:
        with pytest.warns(GeomonitorWarning, match="cannot be written") as told:
            history.append(measurement(2))
            history.append(measurement(3))
        assert len(told) == 1
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["h.csv"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    history.append(measurement(4))
    assert as_text(History.load(path)) == as_text(history)
    assert len(history) == 160


def test_a_disk_that_is_full_before_the_first_byte(tmp_path, monkeypatch):
    history = opened(tmp_path / "h.csv", [1])

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.warns(GeomonitorWarning, match="No space left on device"):
            history.append(measurement(2))
    history.append(measurement(3))
    assert as_text(History.load(tmp_path / "h.csv")) == as_text(history)


def test_a_directory_that_is_read_only(tmp_path, monkeypatch):
    (tmp_path / "h.csv").write_text("of another run")

    def refuse(*args, **options):  # the tests may run as root, who may write everywhere
        raise PermissionError(errno.EACCES, "Permission denied")

    history = History()
    with monkeypatch.context() as patch, pytest.warns(GeomonitorWarning, match="Permission denied") as told:
        for name in ("rename", "replace", "open", "mkdir"):
            patch.setattr(Path, name, refuse)
        history.open(tmp_path / "h.csv", {"seed": 0})
        history.append(RECORDS[:2])
    assert len(told) == 1
    assert len(history) == 2
    assert (tmp_path / "h.csv").read_bytes() == b"of another run"


def test_two_live_histories_of_one_name_keep_apart(tmp_path):
    path = tmp_path / "h.csv"
    first = opened(path, [1])
    second = opened(path, [5])
    with pytest.warns(GeomonitorWarning, match="another run has taken .*h.csv"):
        first.append(measurement(2))
    for step in (3, 4):
        first.append(measurement(step))
        second.append(measurement(step + 3))
    assert second.path == path
    for history in (first, second):
        assert as_text(History.load(history.path)) == as_text(history)


def test_a_file_that_was_deleted_is_written_anew(tmp_path):
    history = opened(tmp_path / "h.csv", [1])
    (tmp_path / "h.csv").unlink()
    history.append(measurement(2))
    assert as_text(History.load(tmp_path / "h.csv")) == as_text(history)


def test_a_file_that_was_cut_off_while_the_run_goes_on_is_written_anew(tmp_path):
    path = tmp_path / "h.csv"
    history = opened(path, [1])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(GeomonitorWarning, match="cut off or changed"):
        history.append(measurement(2))
    assert as_text(History.load(path)) == as_text(history)


def test_a_state_that_is_loaded_into_an_open_history_reaches_the_file(tmp_path):
    history = opened(tmp_path / "h.csv")
    history.load_state_dict(History(measurement(1)).state_dict())
    history.append(measurement(2))
    assert len(History.load(tmp_path / "h.csv")) == 80


def test_a_resume_does_not_overwrite_the_file_of_another_run(tmp_path):
    path = tmp_path / "h.csv"
    opened(path, [1, 2])
    stranger = History([record._replace(time=99.0) for record in measurement(1)])
    stranger.open(path)
    assert len(History.load(path)) == 40
    (moved,) = tmp_path.glob("*/h.csv")
    assert len(History.load(moved)) == 80


def test_what_is_no_history_is_kept_when_a_run_resumes(tmp_path):
    (tmp_path / "h.csv").write_bytes(b"\xff\x00 something else")
    resumed = History(measurement(1))
    resumed.open(tmp_path / "h.csv")
    (moved,) = tmp_path.glob("*/h.csv")
    assert moved.read_bytes() == b"\xff\x00 something else"
    assert len(History.load(tmp_path / "h.csv")) == 40


@pytest.mark.parametrize("end", range(1, 86, 7))
def test_a_file_cut_off_anywhere_gives_back_its_whole_lines(tmp_path, end):
    records = [Record(1, 0, 'schicht_ä\n"1"', "nc1", 1.0), Record(2, None, "ö,\r", "nc1", 0.1), *measurement(3)[:1]]
    history = History()
    history.open(tmp_path / "h.csv")
    history.append(records)
    path = tmp_path / "h.csv"
    path.write_bytes(path.read_bytes()[:-end])
    with pytest.warns(GeomonitorWarning, match="cut off"):
        found = as_text(History.load(path))
    assert found == as_text(history)[: len(found)]
    assert len(found) <= 2


def test_series_are_in_the_order_of_steps_and_know_missing_epochs():
    history = History(
        [Record(30, None, "fc", "d", 3.0), Record(10, 1, "fc", "d", 1.0, 0.5), Record(20, 2, "other", "d", 9.0)]
    )
    series = history.series("fc", "d")
    assert (series.steps.tolist(), series.values.tolist()) == ([10, 30], [1.0, 3.0])
    np.testing.assert_array_equal(series.epochs, [1, math.nan])
    np.testing.assert_array_equal(series.standard_errors, [0.5, math.nan])
    assert len(history.series("fc", "unknown").values) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\r\n1,2\r\n", "no history file"), ("", "no history file")]
    + [(",".join(Record._fields) + "\r\n" + row + "\r\n", "line 2") for row in ("1,2", "x,0,fc,d,1,1,1")],
)
def test_what_is_no_history_is_refused(tmp_path, text, message):
    (tmp_path / "h.csv").write_text(text, newline="")
    with pytest.raises(InputError, match=message):
        History.load(tmp_path / "h.csv")


@pytest.mark.parametrize(
    ("record", "key"), [(RECORDS[0], "geometry/penultimate/dimension"), (RECORDS[3], "geometry_cost/seconds")]
)
def test_keys(record, key):
    assert record.key == key
