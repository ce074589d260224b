"""Two real processes of every kind measure what one measures, and stop alike, within a time limit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import geomonitor as gm
from tests.integrations.rank_runs import KINDS, STOP_STEP, all_kinds, alone
from tests.processes import free_port, in_processes

ROOT = Path(__file__).parents[2]
SECONDS = 500
"""A run takes about 10 s on two quiet cores; one that hangs is killed."""


def spawned(folder: Path) -> str:
    """What a script has printed whose Trainer starts the processes itself."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.integrations.rank_runs", str(folder)], cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.timeout(2 * SECONDS + 20)
def test_two_processes_measure_what_one_measures_and_stop_alike(tmp_path):
    # FSDP2 of older versions of torch does not run on a CPU.
    kinds = [kind for kind in KINDS if kind != "fsdp2" or hasattr(torch.cpu.Stream, "record_event")]
    for kind in [*kinds, "ddp_spawn"]:
        (tmp_path / kind).mkdir()
    first, second = in_processes(all_kinds, kinds, str(tmp_path), free_port(), seconds=SECONDS)
    for kind in kinds:
        require_one_measurement(kind, tmp_path / kind, first[kind] + second[kind])
    require_one_measurement("ddp_spawn", tmp_path / "ddp_spawn", spawned(tmp_path / "ddp_spawn"))


def require_one_measurement(kind: str, folder: Path, told: str) -> None:
    """Fails unless both ranks stopped alike, having measured what this process measures of their weights."""
    ranks = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert [step for step, _ in ranks] == [STOP_STEP, STOP_STEP], kind
    first, second = (values for _, values in ranks)
    assert first == second or str(first) == str(second), kind  # NaN is not equal to itself
    by_one = alone(torch.load(folder / "weights.pt", weights_only=True), passive=kind == "ddp_passive")
    assert first == pytest.approx(by_one, rel=1e-8, nan_ok=True), kind
    if kind != "fabric":  # which has neither early stopping nor a file
        assert told.count("geometry early stopping: The representation has lost ") == 1, kind
        (file,) = folder.rglob("geometry.csv")
        recorded = gm.History.load(file).series("penultimate", "dimension")
        assert (recorded.steps[-1], recorded.values[-1]) == (STOP_STEP, first["geometry/penultimate/dimension"])
    assert math.isfinite(first["geometry/penultimate/dimension"])
    assert math.isfinite(first["geometry/penultimate/nc3"])  # of the head's weights, sharded or not
