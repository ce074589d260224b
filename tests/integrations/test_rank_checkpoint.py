"""Two real processes keep one checkpoint from before a decline, name it alike and restore it alike, also resumed."""

from __future__ import annotations

from tests.integrations.rank_checkpoint import all_runs
from tests.processes import free_port, in_processes

RUNS = {"unbroken": (6,), "resumed": (3, 7)}
"""Epochs at which each part of a run ends."""


def test_kept_named_and_restored_on_both_ranks(tmp_path):
    ranks = in_processes(all_runs, RUNS, str(tmp_path), free_port())
    for name, epochs in RUNS.items():
        checkpoints = tmp_path / name / "ckpt"
        for last, first, second in zip(epochs, *(rank[name] for rank in ranks), strict=True):
            assert first == second, name
            assert first["step"] == 3 * last, name
        assert first["last_healthy"] == (str(checkpoints / "healthy-epoch=1-step=6.ckpt"), 6, 1), name
        assert first["weights"]["steps"] == 6, name
        found = sorted(p.name for p in checkpoints.glob("*.ckpt"))
        assert found == [f"epoch={last - 1}-step={3 * last}.ckpt", "healthy-epoch=1-step=6.ckpt", "last.ckpt"], name
