"""Two real processes keep one checkpoint from before a decline, name it alike and restore it alike, also resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 250


def run(folder: Path, epochs: int) -> list[dict]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.integrations.rank_checkpoint", str(folder), str(epochs)],
        cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.timeout(2 * SECONDS + 20)
@pytest.mark.parametrize("epochs", [(6,), (3, 7)], ids=["unbroken", "resumed"])
def test_kept_named_and_restored_on_both_ranks(tmp_path, epochs):
    for last in epochs:
        first, second = run(tmp_path, last)
        assert first == second
        assert first["step"] == 3 * last
    assert first["last_healthy"] == [str(tmp_path / "ckpt" / "healthy-epoch=1-step=6.ckpt"), 6, 1]
    assert first["weights"]["steps"] == 6
    found = sorted(p.name for p in (tmp_path / "ckpt").glob("*.ckpt"))
    assert found == [f"epoch={epochs[-1] - 1}-step={3 * epochs[-1]}.ckpt", "healthy-epoch=1-step=6.ckpt", "last.ckpt"]
