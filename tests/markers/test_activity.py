"""Activity: hand-made matrices, NumPy's covariance, invariances, degenerate input."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from geomonitor.markers import activity as module
from geomonitor.markers.formulas import feature_markers
from geomonitor.markers.layer_points import LayerPoints


class Activity(NamedTuple):
    active_fraction: Tensor
    dead_units: Tensor
    mean_covariance: Tensor
    mean_norm: Tensor
    norm_variation: Tensor


def activity(x: Tensor) -> Activity:
    """The five markers, through the table that a measurement uses."""
    return Activity(**feature_markers(LayerPoints(x, torch.zeros(len(x), dtype=torch.long)), Activity._fields))


def relu_features(points: int = 60, units: int = 13) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, units, generator=stream, dtype=torch.float64)
    return torch.relu(torch.randn(points, 5, generator=stream, dtype=torch.float64) @ mixing)


def test_counts_by_hand():
    x = torch.tensor([[1.0, 0.0, 0.0, -2.0], [0.0, 0.0, 1e-7, -1.0]])
    found = activity(x)
    assert found.active_fraction.item() == 3 / 8
    assert found.dead_units.item() == 2 / 4  # 1e-7 is not active; a unit that is always negative is


def test_covariance_against_numpy():
    x = relu_features()
    c = np.cov(x.numpy(), rowvar=False, bias=True)
    expected = np.abs(c[~np.eye(len(c), dtype=bool)]).mean()
    assert activity(x).mean_covariance.item() == pytest.approx(expected, rel=1e-12)


def test_covariance_of_known_moments():
    # Two units equal up to sign with variance 4, a third independent of both: |c| = 4 for one of three pairs.
    x = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, -1.0], [-2.0, 2.0, 1.0], [-2.0, 2.0, -1.0]])
    assert activity(x).mean_covariance.item() == pytest.approx(4 / 3)


def test_blocks_and_thinning(monkeypatch):
    x = relu_features()
    whole = activity(x).mean_covariance
    monkeypatch.setattr(module, "BLOCK", 4)
    assert activity(x).mean_covariance.item() == pytest.approx(whole.item(), rel=1e-12)
    monkeypatch.setattr(module, "COVARIANCE_UNITS", 7)
    assert activity(x).mean_covariance.item() == pytest.approx(activity(x[:, ::2]).mean_covariance.item(), rel=1e-12)


def test_norms_against_numpy():
    x = relu_features()
    norms = np.sqrt((x.numpy() ** 2).sum(1))
    assert activity(x).mean_norm.item() == pytest.approx(norms.mean(), rel=1e-12)
    assert activity(x).norm_variation.item() == pytest.approx(norms.std() / norms.mean(), rel=1e-12)


def test_order_does_not_matter_and_scale_goes_through():
    x = relu_features()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    units = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(2))
    one, other = activity(x), activity(1e3 * x[order][:, units])
    powers = {"mean_norm": 1e3, "mean_covariance": 1e6}
    for name, value in one._asdict().items():
        assert getattr(other, name).item() == pytest.approx(value.item() * powers.get(name, 1), rel=1e-12)


def test_rotation_changes_neither_norm():
    x = relu_features()
    turn = torch.linalg.qr(torch.randn(13, 13, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    assert [v.item() for v in activity(x @ turn)[3:]] == pytest.approx([v.item() for v in activity(x)[3:]], rel=1e-12)


def test_offset_leaves_the_covariance_alone():
    x = relu_features()
    assert activity(x + 1e3).mean_covariance.item() == pytest.approx(activity(x).mean_covariance.item(), rel=1e-6)


def test_degenerate_input():
    dead = activity(torch.zeros(4, 3))
    assert [dead.active_fraction, dead.dead_units, dead.mean_covariance, dead.mean_norm] == [0, 1, 0, 0]
    assert math.isnan(dead.norm_variation)
    assert math.isnan(activity(torch.ones(4, 1)).mean_covariance)  # there is no second unit
    with pytest.raises(ValueError, match="NaN or infinite"):
        activity(torch.tensor([[math.nan]]))
