"""Which votes are dependent: phi coefficients by hand, and of runs whose markers fall together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.early_warning.dependence import alarm_series, phi, sentence
from benchmarks.early_warning.report import shipped
from benchmarks.early_warning.trajectories import Run

MARKERS = ("dimension", "capacity", "numerical_rank", "cdnv", "participation_ratio_per_class", "mean_norm", "accuracy")


def run(falling: tuple[str, ...], at: int = 15, *, seed: int = 0, healthy: bool = True) -> Run:
    noise = 100 * np.random.default_rng(seed).normal(1, 0.001, (len(MARKERS), 24))
    columns = {"step": np.arange(1.0, 25), "epoch": np.arange(24.0)}
    for name, values in zip(MARKERS, noise, strict=True):
        sign = -1 if name == "cdnv" else 1
        columns[name] = values * np.where((np.arange(24) >= at) & (name in falling), 2.0**-sign, 1.0)
    return Run("made for this test", "digits", seed, healthy, None, math.nan, "", columns)


def test_phi_is_that_of_the_table_of_counts():
    stream = np.random.default_rng(0)
    a, b = (stream.random((2, 500)) < 0.3).astype(float)
    counts = np.array([[np.sum((a == i) & (b == j)) for j in (0, 1)] for i in (0, 1)], dtype=float)
    rows, columns = counts.sum(1), counts.sum(0)
    expected = (counts[1, 1] * counts[0, 0] - counts[1, 0] * counts[0, 1]) / math.sqrt(rows.prod() * columns.prod())
    assert phi({"a": a, "b": b})["a", "b"] == pytest.approx(expected, rel=1e-12)
    assert math.isnan(phi({"a": a, "b": 0 * b})["a", "b"])


def test_families_that_fall_together_are_dependent():
    runs = [run(("dimension", "numerical_rank"), seed=1), run((), seed=2), run(("mean_norm",), seed=3)]
    on = alarm_series(shipped(), runs)
    assert {len(series) for series in on.values()} == {72}
    assert 0 < on["manifolds"].sum() < 24
    found = phi(on)
    assert found["manifolds", "spectrum"] > 0.8
    assert found["manifolds", "points"] < 0.1


def test_the_sentence_is_about_healthy_runs_alone():
    runs = [run(("dimension", "numerical_rank"), seed=1), run((), seed=2), run(MARKERS, seed=3, healthy=False)]
    text = sentence(shipped(), runs)
    assert text.startswith("Over 2 healthy runs")
    assert "classes at 0.0 %" in text
