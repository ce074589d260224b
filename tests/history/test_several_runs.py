"""Runs that share a directory: no file of another run is lost or overwritten, and each keeps its side file."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import pickle
import warnings
from pathlib import Path

import pytest

from geomonitor import GeomonitorWarning, History, Record
from geomonitor.history import files, lock
from geomonitor.history.files import make, moved_from, set_aside
from tests.processes import FORKSERVER

RUNS, MEASUREMENTS, OLD = 6, 12, 99


def records(run: int, steps: range) -> list[Record]:
    return [Record(step, step, "fc", "dimension", float(run), time=1e9 + 1000 * run + step) for step in steps]


def finished(path: Path, run: int = OLD) -> History:
    history = History()
    history.open(path, {"run": run})
    history.append(records(run, range(30)))
    return history


def live(run: int, path: Path, start: object, ways: str, *, locks: bool) -> None:
    warnings.simplefilter("ignore")
    if not locks:
        lock._take = lambda path: None
    history = History()
    if ways == "resumed":
        history.load_state_dict(History(records(OLD, range(10))).state_dict())
    start.wait()  # type: ignore[attr-defined]
    history.open(path, {"run": run})
    if ways == "resumed":  # else a run could resume what another one has already resumed and ended
        start.wait()  # type: ignore[attr-defined]
    for step in range(100, 100 + MEASUREMENTS):
        history.append(records(run, range(step, step + 1)))


def start_together(path: Path, ways: str = "new", *, locks: bool = True) -> None:
    start = FORKSERVER.Barrier(RUNS)
    processes = [
        FORKSERVER.Process(target=live, args=(n, path, start, ways), kwargs={"locks": locks}) for n in range(RUNS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * RUNS


def found(directory: Path) -> dict[int, list[int]]:
    """Steps by run, each of which must be in one file; with the side file of that run beside it."""
    steps: dict[int, list[int]] = {}
    for file in directory.rglob("*.csv"):
        history = History.load(file)
        owners = {int(record.value) for record in history}
        assert len(owners) == 1
        steps.setdefault(owners.pop(), []).extend(record.step for record in history)
    return steps


def side_files(directory: Path) -> dict[int, int]:
    """By the run of a history, the run of the side file beside it."""
    return {
        int(next(iter(History.load(file))).value): json.loads(file.with_suffix(".json").read_text())["protocol"]["run"]
        for file in directory.rglob("*.csv")
    }


@pytest.mark.parametrize("repetition", range(3))
@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_six_runs_that_start_at_once_lose_nothing(tmp_path, repetition, locks):
    path = tmp_path / "geometry.csv"
    finished(path)
    start_together(path, locks=locks)
    expected = {run: list(range(100, 100 + MEASUREMENTS)) for run in range(RUNS)} | {OLD: list(range(30))}
    assert found(tmp_path) == expected
    if locks:
        assert side_files(tmp_path) == {run: run for run in expected}
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in written} == {"geometry.csv", "geometry.json"}  # no lock, no temporary file
    assert len(written) == 2 * (RUNS + 1) or not locks
    assert all(any(folder.iterdir()) for folder in tmp_path.iterdir() if folder.is_dir())


def test_six_runs_that_resume_one_checkpoint_at_once_all_keep_their_records(tmp_path):
    path = tmp_path / "geometry.csv"
    finished(path)
    start_together(path, "resumed")
    of_runs = [History.load(file) for file in tmp_path.rglob("*.csv")]
    for run in range(RUNS):
        mine = [history for history in of_runs if any(record.value == run for record in history)]
        assert len(mine) == 1
        assert [record.step for record in mine[0]] == [*range(10), *range(100, 100 + MEASUREMENTS)]


def test_a_run_whose_file_was_moved_goes_on_in_it(tmp_path):
    path = tmp_path / "geometry.csv"
    first, second, third = (History() for _ in range(3))
    for run, history in enumerate((first, second, third)):
        history.open(path, {"run": run})
        history.append(records(run, range(2)))
    for run, history in enumerate((first, second)):
        with pytest.warns(GeomonitorWarning, match="another run has taken"):
            history.append(records(run, range(2, 4)))
        history.append(records(run, range(4, 6)))  # one warning
    assert [history.path.parent for history in (first, second, third)] == [
        tmp_path / first.run_id, tmp_path / second.run_id, tmp_path,
    ]  # fmt: skip
    assert found(tmp_path) == {0: list(range(6)), 1: list(range(6)), 2: list(range(2))}
    assert side_files(tmp_path) == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize("measured", [0, 30], ids=["header only", "measured"])
def test_a_new_file_is_not_taken_for_a_deleted_one(tmp_path, measured):
    """A file system may give the number of a deleted file to the next one, which may also be as long."""
    path, mine = tmp_path / "geometry.csv", History()
    mine.open(path, {"run": 1})
    mine.append(records(1, range(measured)))
    for file in tmp_path.iterdir():
        file.unlink()
    other = History()
    other.open(path, {"run": 2})
    other.append(records(2, range(measured)))
    with pytest.warns(GeomonitorWarning, match="another run has taken"):
        mine.append(records(1, range(measured, 40)))
    other.append(records(2, range(measured, 40)))
    assert found(tmp_path) == {1: list(range(40)), 2: list(range(40))}
    assert side_files(tmp_path) == {1: 1, 2: 2}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda history: pickle.loads(pickle.dumps(history))])
def test_a_copy_of_a_history_and_the_original_both_go_on(tmp_path, copied):
    mine = finished(tmp_path / "geometry.csv", 1)
    other = copied(mine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeomonitorWarning)  # each finds that the other has added lines
        for step in range(30, 33):
            mine.append(records(1, range(step, step + 1)))
            other.append(records(1, range(step + 10, step + 11)))
    for history, last in ((mine, 32), (other, 42)):
        assert last in [record.step for record in History.load(history.path)]


def held_open(directory: Path) -> list[str]:
    """Files below a directory that this process holds open, once for each descriptor."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [link for link in links if link.startswith(f"{directory}/")]


def test_a_run_holds_one_file_open_and_a_forgotten_one_none(tmp_path):
    for run in range(20):
        history = finished(tmp_path / "geometry.csv", run)
    assert len(held_open(tmp_path)) == 1  # under the name by which it was published
    history.clear()
    assert held_open(tmp_path) == []


def test_a_side_file_without_a_history_is_moved_not_overwritten(tmp_path):
    (tmp_path / "geometry.json").write_text("of the user")
    finished(tmp_path / "geometry.csv")
    (kept,) = tmp_path.glob("*/geometry.json")
    assert kept.read_text() == "of the user"
    assert side_files(tmp_path) == {OLD: OLD}


def test_a_side_file_that_could_not_be_written_follows(tmp_path, monkeypatch):
    written = files.written_beside

    def no_side_file(path: Path, data: bytes) -> Path:
        if path.suffix == ".json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, data)

    history = History()
    with monkeypatch.context() as patch:
        patch.setattr(files, "written_beside", no_side_file)
        history.open(tmp_path / "geometry.csv", {"run": 1})
        history.append(records(1, range(2)))
    assert not (tmp_path / "geometry.json").exists()
    history.append(records(1, range(2, 4)))
    assert side_files(tmp_path) == {1: 1}


class TestMake:
    @pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
    def test_a_name_that_is_taken_is_left_alone(self, tmp_path, monkeypatch, links):
        if not links:
            monkeypatch.setattr(Path, "hardlink_to", refuse)
        make(tmp_path / "a.csv", b"first")
        with pytest.raises(FileExistsError):
            make(tmp_path / "a.csv", b"second")
        assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.csv", b"first")]

    def test_a_history_on_a_file_system_without_hard_links(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Path, "hardlink_to", refuse)
        for run in (1, 2):
            finished(tmp_path / "geometry.csv", run)
        assert found(tmp_path) == {1: list(range(30)), 2: list(range(30))}
        assert side_files(tmp_path) == {1: 1, 2: 2}

    def test_what_moves_away_replaces_nothing(self, tmp_path, monkeypatch):
        """Another run takes the number just before the renaming."""
        path = tmp_path / "geometry.csv"
        path.write_text("old")
        path.with_suffix(".json").write_text('{"run_id": "old"}')
        opened = Path.open

        def taken(self: Path, mode: str = "r", **options: object) -> object:
            if self == tmp_path / "old/geometry.csv" and mode == "xb":
                with contextlib.suppress(FileExistsError), opened(self, "x") as file:
                    file.write("of another run")
            return opened(self, mode, **options)

        monkeypatch.setattr(Path, "open", taken)
        set_aside(path)
        assert (tmp_path / "old/geometry.csv").read_text() == "of another run"
        assert (tmp_path / "old-2/geometry.csv").read_text() == "old"


def refuse(*args: object, **options: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_moved_files_are_found_by_the_id_of_their_run(tmp_path):
    for name in ("ab12/a[1].csv", "ab12-2/a[1].csv", "cd34/a[1].csv", "ab12/b.csv", "a[1].csv", "ab12/a1.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    own = [tmp_path / "ab12/a[1].csv", tmp_path / "ab12-2/a[1].csv"]
    assert moved_from(tmp_path / "a[1].csv", "ab12") == own
    assert moved_from(tmp_path / "a[1].csv") == [*own, tmp_path / "cd34/a[1].csv"]
    assert moved_from(tmp_path / "nowhere" / "a.csv") == []


class TestLock:
    def test_one_at_a_time(self, tmp_path, monkeypatch):
        monkeypatch.setattr(lock, "LONGEST_WAIT", 0.05)
        path = tmp_path / "a.csv"
        with lock.locked(path) as first, lock.locked(path) as second:
            assert (first, second) == (True, False)
        with lock.locked(path) as again:
            assert again
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("refused", ["open", "flock"])
    def test_without_locks_it_goes_on(self, tmp_path, monkeypatch, refused):
        import fcntl

        monkeypatch.setattr(*((os, "open") if refused == "open" else (fcntl, "flock")), refuse)
        with lock.locked(tmp_path / "a.csv") as got:
            assert not got
        assert list(tmp_path.iterdir()) == []
