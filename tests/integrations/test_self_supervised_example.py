"""The example without labels runs from end to end in its short mode: a Lightning callback, a table and a picture."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[2] / "examples/self_supervised.py"


@pytest.mark.filterwarnings("ignore")  # of Lightning, on a machine without workers
def test_the_example_runs(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("self_supervised", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    curves = example.main(["--short", "--output", str(tmp_path)])
    assert all(len(curve) == 3 and all(map(math.isfinite, curve)) for curve in curves.values())
    assert set(example.LABEL_FREE) | set(example.LABELLED) == set(curves)
    assert "rank correlation over 3 epochs" in capsys.readouterr().out
    assert (tmp_path / "self_supervised.png").stat().st_size > 1000
