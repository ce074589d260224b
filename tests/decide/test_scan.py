"""Scanning the checkpoints of a real Lightning run gives the history of that run, on one process and on two."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from geomonitor import GeomonitorWarning, History, InputError, MeasurementError
from geomonitor.cli.app import run
from geomonitor.decide.scan import moments, runs_of, scan
from geomonitor_integrations.lightning import GeometryCallback
from tests.scan_targets import MARKERS, Net, dataset, model, monitor

ROOT = Path(__file__).parents[2]
EPOCHS = 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Directory of a run with its online history, and its checkpoints by step."""
    directory = tmp_path_factory.mktemp("run")
    L.seed_everything(0, verbose=False)
    saved = ModelCheckpoint(directory / "checkpoints", filename="{epoch}-{step}", save_top_k=-1, save_last=True)
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[GeometryCallback(monitor()), saved], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=directory, log_every_n_steps=1,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="geometry alarm"):
        trainer.fit(Net(), DataLoader(dataset(), batch_size=16, shuffle=True), DataLoader(dataset(), batch_size=96))
    return directory


def checkpoints(directory: Path) -> list[str]:
    return sorted(map(str, (directory / "checkpoints").glob("epoch*.ckpt")), reverse=True)


def assert_equal_histories(found: History, expected: History) -> None:
    """To 1e-8, as the issue asks; of what belongs to no layer (seconds, learning rate) a scan knows but the cost."""
    kept = [{(r.step, r.epoch, r.layer, r.marker): r for r in h if r.layer} for h in (found, expected)]
    assert len(found.series("", "seconds").steps) == EPOCHS
    assert kept[0].keys() == kept[1].keys()
    assert {*MARKERS, "alarm"} <= {marker for *_, marker in kept[1]}
    assert len({step for step, *_ in kept[1]}) == EPOCHS
    for key, record in kept[1].items():
        for name in ("value", "standard_error", "change_error"):
            one, other = getattr(kept[0][key], name), getattr(record, name)
            assert one == pytest.approx(other, rel=0, abs=1e-8, nan_ok=True), (key, name)


def test_a_scan_equals_the_history_of_the_run(trained):
    watching = monitor()
    verdicts = list(scan(watching, model(), moments(checkpoints(trained))))
    assert_equal_histories(watching.history, History.load(trained / "geometry.csv"))
    assert [v is not None for v in verdicts] == [False, False, True, False]  # told once, at the third
    assert watching.judge.panel is watching.panel  # back in its place


def test_two_processes_under_torchrun_give_the_same(trained, tmp_path):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "geomonitor.cli", "scan", "--model", "tests.scan_targets:model"),
        *("--probe", "tests.scan_targets:monitor", "--output", str(tmp_path), *checkpoints(trained)),
    ]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoints measured") == 1
    assert_equal_histories(History.load(tmp_path / "geometry.csv"), History.load(trained / "geometry.csv"))


def test_order_is_that_of_training_and_each_step_counts_once(trained):
    found = checkpoints(trained)
    with pytest.warns(GeomonitorWarning, match=r"last.ckpt is left out"):
        ordered = moments([*found, str(trained / "checkpoints" / "last.ckpt")])
    assert [m.step for m in ordered] == [6, 12, 18, 24]
    assert [m.epoch for m in ordered] == [0, 1, 2, 3]


@pytest.mark.parametrize("layout", ["folders", "one folder"])
def test_checkpoints_of_one_step_with_other_weights_are_runs_of_their_own(tmp_path, layout):
    paths = []
    for seed in range(3):
        for step in (10, 20) if layout == "folders" else (10,):
            torch.manual_seed(10 * seed + step)
            name = f"seed{seed}/step_{step}.pt" if layout == "folders" else f"seed{seed}-step_{step}.pt"
            (tmp_path / name).parent.mkdir(exist_ok=True)
            torch.save(Net().state_dict(), tmp_path / name)
            paths.append(str(tmp_path / name))
    runs = runs_of(paths)
    steps = {name: [m.step for m in ordered] for name, ordered in runs.items()}
    if layout == "folders":
        assert steps == {"seed0": [10, 20], "seed1": [10, 20], "seed2": [10, 20]}
    else:
        assert steps == {"seed0-step_10": [10], "seed1-step_10": [10], "seed2-step_10": [10]}
    assert sorted(m.path for ordered in runs.values() for m in ordered) == sorted(paths)  # none is dropped
    targets = ["--model", "tests.scan_targets:model", "--probe", "tests.scan_targets:probe"]
    assert run(["scan", *targets, "--marker", "rankme", "--output", str(tmp_path / "out"), *paths]) == 0
    assert len(list((tmp_path / "out").rglob("geometry.csv"))) == 3
    values = {
        History.load(f).series("penultimate", "rankme").values[0] for f in (tmp_path / "out").rglob("geometry.csv")
    }
    assert len(values) == 3


def test_files_that_tell_no_step_keep_their_order(tmp_path):
    for name in ("first.pt", "second.pt"):
        torch.save(Net().state_dict(), tmp_path / name)
    with pytest.warns(GeomonitorWarning, match="order in which they are given"):
        ordered = moments([str(tmp_path / "second.pt"), str(tmp_path / "first.pt")])
    assert [(Path(m.path).name, m.step) for m in ordered] == [("second.pt", 0), ("first.pt", 1)]
    torch.save(Net().state_dict(), tmp_path / "step_5.pt")
    with pytest.raises(InputError, match=r"first.pt has no step, others have one"):
        moments([str(tmp_path / "step_5.pt"), str(tmp_path / "first.pt")])
    with pytest.raises(InputError, match="no checkpoints given"):
        moments([])


def test_weights_that_are_not_finite_are_a_gap_and_nothing_but_gaps_an_error(trained, tmp_path):
    ruined = {name: torch.full_like(value, math.nan) for name, value in Net().state_dict().items()}
    torch.save(ruined, tmp_path / "step_7.pt")
    watching = monitor()
    with pytest.warns(GeomonitorWarning):
        list(scan(watching, model(), moments([*checkpoints(trained), str(tmp_path / "step_7.pt")])))
    values = watching.history.series("penultimate", "dimension")
    assert values.steps.tolist() == [6, 7, 12, 18, 24]
    assert [math.isnan(value) for value in values.values] == [False, True, False, False, False]
    with pytest.warns(GeomonitorWarning), pytest.raises(MeasurementError, match="no checkpoint could be measured"):
        list(scan(monitor(), model(), moments([str(tmp_path / "step_7.pt")])))
