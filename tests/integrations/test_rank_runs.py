"""Two real processes of every kind measure what one measures, and stop alike, within a time limit."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import geomonitor as gm
from tests.integrations.rank_runs import KINDS, STOP_STEP

ROOT = Path(__file__).parents[2]
SECONDS = 500
"""A run takes about 20 s on two quiet cores; one that hangs is killed."""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.integrations.rank_runs", *arguments], cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.timeout(2 * SECONDS + 20)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_measure_what_one_measures_and_stop_alike(tmp_path, kind):
    if kind == "fsdp2" and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("FSDP2 of this torch does not run on a CPU")
    told = run(tmp_path, kind, str(tmp_path)).stderr
    ranks = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert [step for step, _ in ranks] == [STOP_STEP, STOP_STEP]
    first, second = (values for _, values in ranks)
    assert first == second or str(first) == str(second)  # NaN is not equal to itself
    alone = json.loads(re.findall(r"ALONE (.*)", run(tmp_path, "alone", kind.removeprefix("ddp_")).stdout)[0])
    assert first == pytest.approx(alone, rel=1e-8, nan_ok=True)
    if kind != "fabric":  # which has neither early stopping nor a file
        assert told.count("geometry early stopping: dimension of 'penultimate'") == 1
        (file,) = tmp_path.rglob("geometry.csv")
        recorded = gm.History.load(file).series("penultimate", "dimension")
        assert (recorded.steps[-1], recorded.values[-1]) == (STOP_STEP, first["geometry/penultimate/dimension"])
    assert math.isfinite(first["geometry/penultimate/dimension"])
    assert math.isfinite(first["geometry/penultimate/nc3"])  # of the head's weights, sharded or not
