"""The correlations of the paper's table come out of its data, to two decimals."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from geomonitor import MARKER_GROUPS

pytest.importorskip("pandas")
SCRIPT = Path(__file__).parents[2] / "examples/paper_correlations.py"

# The figures that are known from the data's description: dimension and test accuracy against acc_lp_ood.
KNOWN = {
    "ResNet18": (0.90, 0.76),
    "VGG": (0.79, 0.41),
    "MobileNet": (0.94, 0.12),
    "DenseNet121": (0.95, 0.45),
    "EfficientNetB0": (0.70, 0.51),
}


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("paper_correlations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_known_correlations_come_out(example):
    table = example.correlations(example.load_runs())
    for architecture, (dimension, accuracy) in KNOWN.items():
        assert table[architecture]["dimension"].round(2) == dimension
        assert table[architecture]["accuracy"].round(2) == accuracy


def test_every_marker_of_the_group_is_there_and_scipy_agrees(example):
    assert set(example.COLUMNS) == set(MARKER_GROUPS["paper"])
    runs = example.load_runs()
    table = example.correlations(runs)
    group = runs[runs["arch_name"] == "VGG"]
    for name, column in example.COLUMNS.items():
        assert table["VGG"][name] == pytest.approx(pearsonr(group[column], group["acc_lp_ood"]).statistic, abs=1e-9)


def test_their_figures_obey_the_identity_of_the_measures(example):
    """Alpha = Psi (1 + R^-2) / D: the authors' averages obey it as far as rounding lets them."""
    runs = example.load_runs()
    right = runs["utility_id"] * (1 + runs["radius_id"] ** -2) / runs["dimension_id"]
    assert np.median(abs(right / runs["capacity_id"] - 1)) < 0.05


def test_the_script_runs_and_writes_the_plot(example, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["paper_correlations", "--output", str(tmp_path / "plot.png")])
    example.main()
    assert "dimension" in capsys.readouterr().out
    assert (tmp_path / "plot.png").stat().st_size > 10_000
