"""Two real processes under Lightning's DDP: one measurement, one stop, one history, no dead-lock."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from geomonitor import History
from tests.integrations.two_ranks import STOP_STEP

ROOT = Path(__file__).parents[2]


def test_both_ranks_measure_and_stop_alike(tmp_path):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.integrations.two_ranks", tmp_path],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    ranks = re.findall(r"RANK (\d) (\d+) (\S+)", done.stdout)
    assert {rank for rank, *_ in ranks} == {"0", "1"}, done.stderr
    assert {int(step) for _, step, _ in ranks} == {STOP_STEP}
    assert len({value for *_, value in ranks}) == 1
    assert done.stderr.count("geometry early stopping: dimension of 'penultimate'") == 1
    alone = float(re.findall(r"ALONE (\S+)", done.stdout)[0])
    assert float(ranks[0][2]) == pytest.approx(alone, rel=1e-5)  # float32 forward passes of other batch sizes
    recorded = History.load(tmp_path / "geometry.csv").series("penultimate", "dimension")
    assert recorded.steps.tolist() == [3, STOP_STEP]
    assert recorded.values[-1] == float(ranks[0][2])
