"""The page of many runs, and what the command line makes of several or of a directory above them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from geomonitor import History, Record
from geomonitor.cli.app import run as command
from geomonitor.history.runs import load_run
from geomonitor.report.many import write_runs
from tests.runs_on_disk import PROTOCOL, write_run

ORDER = ["alarm", "blind", "early", "healthy"]


def short(folder: Path) -> Path:
    history = History()
    history.open(folder / "geometry.csv", PROTOCOL)
    history.append([Record(24 * n, n, "penultimate", "dimension", 2.0, 0.05, 1e9 + n) for n in range(3)])
    return folder


def blind(folder: Path) -> Path:
    write_run(folder)
    history = History.load(folder / "geometry.csv")
    last = [Record(504, 20, "penultimate", name, math.nan) for name in ("dimension", "utility", "alarm")]
    history.append([*last, Record(504, 20, "", "seconds", 0.5)])
    history.open(folder / "again" / "geometry.csv", PROTOCOL)
    for name in ("geometry.csv", "geometry.json"):
        (folder / "again" / name).replace(folder / name)
    (folder / "again").rmdir()
    return folder


@pytest.fixture
def runs(tmp_path) -> Path:
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", faulty=True)
    short(tmp_path / "runs/c")
    blind(tmp_path / "runs/d")
    return tmp_path / "runs"


def states(page: str) -> list[str]:
    return re.findall(r'<div class="status (\w+)">', page)


def test_the_page_begins_with_the_status_of_each_run_the_most_urgent_one_first(runs):
    every = [load_run(runs / name) for name in "abcd"]
    page = write_runs(every, runs / "page.html").read_text(encoding="utf-8")
    assert states(page) == ORDER
    for run in every:
        assert re.search(rf"<h2>{run.name}: [a-z ]+ <small>run {run.id}</small>", page)
    assert "has lost 49&nbsp;% of its dimension" in page  # in one line on a phone
    assert "Last healthy checkpoint: one from before step" in page
    assert "Measurements of" in page
    assert "Judged from measurement" in page
    assert page.index('class="status') < page.index("<table>")
    assert "<td>dimension</td>" in page


def test_runs_of_two_protocols_have_their_status_and_no_table(tmp_path):
    other = write_run(tmp_path / "other", protocol={**PROTOCOL, "seed": 1})
    page = write_runs([load_run(write_run(tmp_path / "a")), load_run(other)], tmp_path / "p.html").read_text()
    assert states(page) == ["healthy", "healthy"]
    assert "different protocols (seed)" in page
    assert "<table>" not in page


@pytest.mark.parametrize("given", [["."], ["a", "b", "c", "d"], ["a", "a", "b", "c", "d"]])
def test_report_writes_one_page_of_several_runs(runs, given, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert command(["report", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(runs / "geometry_runs.html")
    assert found["runs"] == [load_run(runs / name).id for name in "abcd"]
    assert states(Path(found["path"]).read_text(encoding="utf-8")) == ORDER
    assert command(["report", *given, "--compare", "a"]) == 2
    assert "--compare draws other runs beside one" in capsys.readouterr().err


def test_status_of_a_directory_names_each_run_and_its_id(runs, capsys):
    assert command(["status", str(runs)]) == 1
    printed = capsys.readouterr().out
    for name in "abcd":
        assert f"{runs / name} (run {load_run(runs / name).id})" in printed
    assert printed.count("Last healthy checkpoint") == 1  # of the run in an alarm alone
    assert command(["status", str(runs / "a"), str(runs / "c"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["state"] for row in rows] == ["healthy", "early"]
    assert rows[0]["run"] == load_run(runs / "a").id


def test_a_run_that_has_only_begun_is_left_out(runs, capsys):
    History().open(runs / "new" / "geometry.csv", PROTOCOL)
    assert command(["status", str(runs)]) == 1
    assert "holds no measurement yet" in capsys.readouterr().err
    assert command(["status", str(runs / "new")]) == 2


def test_a_run_is_named_by_its_id(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs.parent)
    run = load_run(runs / "b").id
    assert command(["status", run]) == 1
    assert command(["replay", run, "--json"]) == 1
    assert f'"run": "{run}"' in capsys.readouterr().out
    assert command(["report", f"runs/{run}"]) == 0
    page = (runs / "b/geometry.html").read_text(encoding="utf-8")
    assert f"run {run} · " in page
    assert command(["replay", "runs"]) == 2
    assert f"b (run {run})" in " ".join(capsys.readouterr().err.split())
