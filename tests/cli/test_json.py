"""``--json`` prints one object that a strict parser reads, with the exit code of the table; tables fit a terminal."""

from __future__ import annotations

import json

import pytest

from geomonitor.cli.app import run
from geomonitor.markers import BESIDE, MARKERS
from tests.runs_on_disk import write_run


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def object_of(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out, parse_constant=no_constant)


@pytest.fixture
def runs(tmp_path) -> dict[str, str]:
    found = {name: str(write_run(tmp_path / name)) for name in ("a", "b", "c")}
    return {**found, "faulty": str(write_run(tmp_path / "faulty", faulty=True))}


def test_markers(capsys):
    assert run(["markers", "--json"]) == 0
    assert list(object_of(capsys)["markers"]) == [*MARKERS, *BESIDE]


def test_status_and_report(runs, capsys):
    assert run(["status", runs["faulty"], "--json"]) == 1
    assert object_of(capsys)["state"] == "alarm"
    assert run(["report", runs["a"], "--json"]) == 0
    found = object_of(capsys)
    assert found["path"].endswith("geometry.html")
    assert found["bytes"] > 1000


def test_replay(runs, capsys):
    assert run(["replay", runs["a"], "--json"]) == 0
    assert object_of(capsys)["alarms"] == {"penultimate": []}
    assert run(["replay", runs["faulty"], "--json", "--watch", "dimension"]) == 1
    (alarm,) = object_of(capsys)["alarms"]["penultimate"]
    assert alarm["end_step"] is None
    assert alarm["verdict"]["marker"] == "dimension"


def test_compare_two(runs, capsys):
    assert run(["compare", runs["a"], runs["faulty"], "--min", "dimension=90%", "--json"]) == 1
    found = object_of(capsys)
    assert found["broken"] == 1
    (row,) = [one for one in found["markers"] if one["marker"] == "dimension"]
    assert row["value"] < 0.6 * row["reference"]
    (rankme,) = [one for one in found["markers"] if one["marker"] == "rankme"]
    assert rankme["error"] is None  # NaN


def test_compare_many(runs, capsys):
    healthy = [runs["a"], runs["b"], runs["c"]]
    assert run(["compare", runs["faulty"], "--json", "--against", *healthy]) == 1
    found = object_of(capsys)
    assert len(found["regressions"]) > 0
    assert found["runs"] == [runs["faulty"]]


@pytest.mark.parametrize("others", [1, 3])
def test_tables_fit_80_columns(runs, others, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run(["compare", *list(runs.values())[: others + 1]])
    lines = capsys.readouterr().out.splitlines()
    assert any("dimension" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
