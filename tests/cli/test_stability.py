"""``geomonitor stability``: the numbers of the functions, for one run and for a run a task."""

from __future__ import annotations

import json

import numpy as np
import pytest

from geomonitor import History
from geomonitor.cli.app import run
from geomonitor.history.stability import stability_of
from tests.runs_on_disk import FAULT, STEPS, write_run


def test_a_run_against_the_function(tmp_path, capsys):
    path = write_run(tmp_path / "run", faulty=True)
    end = STEPS * (FAULT - 2)
    options = ["--marker", "dimension", "--window", "4", "--tasks", str(end)]
    assert run(["stability", str(path), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = stability_of(
        History.load(path / "geometry.csv").series("penultimate", "dimension"), window=4, tasks=[end]
    )
    assert found["marker"] == "dimension"
    row = found["layers"]["penultimate"]
    assert row["windowed_forgetting"] == expected.windowed_forgetting > 0.9
    assert row["min_accuracy"] == expected.min_accuracy < 1.1
    assert row["worst_case_accuracy"] is None
    assert run(["stability", str(path), *options]) == 0
    printed = capsys.readouterr().out
    assert f"{expected.windowed_forgetting:.4g}" in printed
    assert f"{expected.noise:.4g}" in printed


def test_a_run_for_each_task(tmp_path, capsys):
    paths = [str(write_run(tmp_path / name, faulty=name == "old")) for name in ("old", "new")]
    assert run(["stability", *paths, "--marker", "dimension", "--tasks", str(STEPS * 10), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["layers"]["penultimate"]
    old, new = (History.load(f"{p}/geometry.csv").series("penultimate", "dimension").values for p in paths)
    assert row["min_accuracy"] == old[10:].min()
    assert row["worst_case_accuracy"] == pytest.approx(np.mean([new[-1], old[10:].min()]))


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    path = str(write_run(tmp_path / "run"))
    for arguments, message in (
        (["--marker", "accuracy"], "'accuracy' was not measured in any layer of all runs"),
        (["--marker", "dimension", "--layer", "first"], "'dimension' was not measured in layer 'first'"),
        (["--marker", "dimension", "--tasks", "10,x"], "--tasks takes whole numbers"),
        (["--marker", "dimension", "--tasks", "10,5"], "must rise; got 5 after 10"),
        (["--marker", "dimension", "--window", "1"], "window"),
    ):
        assert run(["stability", path, *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
