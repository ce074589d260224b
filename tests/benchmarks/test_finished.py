"""The tables of docs/finished_models.md, from the cached runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.elsewhere.finished import MARKERS, correlation, finished, table
from benchmarks.elsewhere.runs import LATER, load

PAGE = (Path(__file__).parents[2] / "docs/finished_models.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("gain", "early"), [(False, False), (True, False), (True, True)])
def test_the_rows_of_the_page(gain, early):
    runs = [run for run in (*load(), *load(LATER)) if run.task in ("vit", "bags")]
    rows = table(runs, gain=gain, early=early)
    assert len(rows) == 2
    for row in rows:
        assert row in PAGE


def test_a_correlation_is_that_of_scipy_and_lies_in_its_interval():
    draw = np.random.default_rng(1)
    x = draw.normal(size=60).round(1)
    y = x + draw.normal(size=60)
    rho, low, high = correlation(x, y)
    assert rho == pytest.approx(spearmanr(x, y).statistic, abs=0.006)
    assert low < rho < high
    assert np.isnan(correlation(np.ones(20), y[:20])).all()
    assert correlation(np.where(np.arange(60) < 55, x, np.nan), y)[0] == pytest.approx(
        spearmanr(x[:55], y[:55]).statistic, abs=0.006
    )


def test_faulty_runs_are_left_out():
    kept = finished(load())
    assert {task: len(runs) for task, runs in kept.items()} == {
        "conv_bn": 44, "minilm": 40, "pairs": 44, "simclr": 44, "vit": 44,
    }  # fmt: skip
    assert "dimension" in MARKERS
