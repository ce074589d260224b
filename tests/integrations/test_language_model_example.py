"""The example of a language model runs from end to end in its short mode: two monitors, a table and a picture."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[2] / "examples/language_model.py"


def test_the_example_runs(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("language_model", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    histories = example.main(["--short", "--output", str(tmp_path)])
    for pool in example.POOLS:
        for block in range(example.BLOCKS):
            for marker in example.MARKERS:
                values = histories[pool].series(f"block {block}", marker).values
                assert len(values) == 3
                assert all(map(math.isfinite, values))
    last, mean = (histories[pool].series("block 3", "rankme").values for pool in example.POOLS)
    assert list(last) != list(mean)
    printed = capsys.readouterr().out
    assert "Held-out loss" in printed
    assert "block 3" in printed
    assert (tmp_path / "language_model.png").stat().st_size > 1000
