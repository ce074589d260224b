"""The id of a run: kept when it goes on, in the side file, and a name by which the run is found."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

import geomonitor as gm
from geomonitor.history.runs import find_runs, load_run, others_beside
from geomonitor.run import MonitoredRun
from tests.runs_on_disk import write_run
from tests.scan_targets import model, probe


def new_run(**options: object) -> MonitoredRun:
    return MonitoredRun(gm.GeometryMonitor(probe(), markers=["rankme"], panel=None), **options)


def id_in(folder: object) -> str:
    return json.loads((folder / "geometry.json").read_text())["run_id"]


def test_each_run_has_an_id_of_its_own_and_no_random_stream_is_touched():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    ids = {gm.History().run_id for _ in range(20)}
    assert len(ids) == 20
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_that_goes_on_keeps_its_id_its_folder_and_its_file(tmp_path, whole):
    network, first = model(), new_run(checkpoint_history=whole)
    first.start(network, tmp_path, own_folder=True)
    first.measure(network, step=10, epoch=0)
    folder = tmp_path / first.monitor.history.run_id
    assert id_in(folder) == folder.name
    resumed = new_run(checkpoint_history=whole)
    resumed.load_state_dict(first.state_dict())
    resumed.start(network, tmp_path, own_folder=True, step=10)
    resumed.measure(network, step=20, epoch=1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [folder.name, "geometry.csv", "geometry.json"]
    assert id_in(folder) == folder.name
    assert load_run(tmp_path).history.series("penultimate", "rankme").steps.tolist() == [10, 20]


def test_a_run_that_goes_on_without_a_checkpoint_keeps_its_id_and_a_new_one_does_not(tmp_path):
    network, run = model(), new_run()
    ids = []
    for step in (0, 10, 0):
        run.start(network, tmp_path, own_folder=True, step=step)
        run.measure(network, step=step + 10, epoch=0)
        ids.append(run.monitor.history.run_id)
    assert ids[0] == ids[1] != ids[2]
    assert {path.name for path in tmp_path.iterdir()} == set(ids)
    assert all(path.name in ("geometry.csv", "geometry.json") for path in tmp_path.glob("*/*"))


def test_the_id_of_a_logger_is_taken(tmp_path):
    network, run = model(), new_run()
    run.start(network, tmp_path, run_id="x7f3k2aa")
    run.measure(network, step=10, epoch=0)
    assert id_in(tmp_path) == load_run(tmp_path).id == "x7f3k2aa"
    for wrong in ("../up", "", "a/b", 3):
        with pytest.raises(gm.InputError, match="run_id must be"):
            run.start(network, tmp_path, run_id=wrong)


def test_an_id_of_a_damaged_state_names_no_folder():
    history = gm.History()
    own = history.run_id
    for wrong in ("../../up", 3, None):
        history.load_state_dict({**gm.History().state_dict(), "run_id": wrong})
        assert history.run_id == own


def test_a_run_is_found_by_its_id_and_several_are_listed_with_theirs(tmp_path, monkeypatch):
    first, second = write_run(tmp_path / "logs/a/version_0"), write_run(tmp_path / "logs/b")
    monkeypatch.chdir(tmp_path)
    for given in (id_in(first), f"logs/{id_in(first)}"):
        assert load_run(given).path.parent.name == "version_0"
    with pytest.raises(gm.InputError) as error:
        load_run("logs")
    assert f"version_0 (run {id_in(first)})" in str(error.value)
    assert f"b (run {id_in(second)})" in str(error.value)
    assert find_runs("logs") == [file.relative_to(tmp_path) / "geometry.csv" for file in (first, second)]
    with pytest.raises(gm.InputError, match="or its run id"):
        load_run("0123abcd")


def test_a_run_that_another_one_has_moved_aside_is_found_by_its_id(tmp_path, monkeypatch):
    old = id_in(write_run(tmp_path / "run"))
    write_run(tmp_path / "run", faulty=True)
    monkeypatch.chdir(tmp_path)
    for given in (tmp_path / "run" / old, old):
        assert load_run(given).path.absolute() == tmp_path / "run" / old / "geometry.csv"
    assert load_run("run").id == id_in(tmp_path / "run") != old
    assert [load_run(file).id for file in others_beside(find_runs("run")[0])] == [old]


def test_a_side_file_without_an_id_is_read(tmp_path):
    run = write_run(tmp_path)
    (run / "geometry.json").write_text('{"protocol": {"seed": 0}, "panel": null}', encoding="utf-8")
    assert (load_run(run).id, load_run(run).protocol) == ("", {"seed": 0})
