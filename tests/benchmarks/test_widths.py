"""The tables of docs/finished_models.md for models of several widths, from the models in the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.elsewhere.widths import TASKS, WIDTHS, correlation, load, recipes, table


def test_the_page_has_the_tables():
    page = (Path(__file__).parents[2] / "docs/finished_models.md").read_text(encoding="utf-8")
    models = load()
    for line in (*table(models, early=False), *table(models, early=True)):
        assert line in page


def test_every_model_of_the_grid_is_there_once():
    models = {(m["task"], m["choice"], m["width"], m["seed"]) for m in load()}
    assert models == {(r.task, choice, r.width, r.seed) for choice, r in recipes()}
    assert len(models) == 48 * len(TASKS)
    assert {m["width"] for m in load()} == set(WIDTHS)


def test_in_one_group_it_is_spearman():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 30))
    found, low, high = correlation(x, y + x, [(0,)] * 30)
    assert found == pytest.approx(spearmanr(x, y + x).statistic, abs=0.005)
    assert low < found < high


def test_differences_between_groups_do_not_count():
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(2, 40))
    groups = [(i % 4,) for i in range(40)]
    shift = np.arange(40) % 4 * 100
    assert correlation(x + shift, y + shift, groups) == correlation(x, y, groups)


def test_what_is_constant_or_not_finite_has_no_correlation():
    y = np.arange(12.0)
    assert np.isnan(correlation(np.ones(12), y, [(0,)] * 12)).all()
    assert np.isnan(correlation(np.where(y == 3, np.nan, y), y, [(0,)] * 12)).all()
