"""Distances and angles: SciPy's pdist and NumPy's arccos, closed forms, invariances, degenerate input."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch import Tensor

from geomonitor.markers.formulas import feature_markers
from geomonitor.markers.layer_points import LayerPoints


class Distances(NamedTuple):
    feature_distance: Tensor
    within_class_distance: Tensor
    angle: Tensor


def distances(x: Tensor, labels: Tensor) -> Distances:
    """The three markers, through the table that a measurement uses."""
    return Distances(**feature_markers(LayerPoints(x, labels), Distances._fields))


def clouds(offset: float = 0.0) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    x = 2 * torch.randn(3, 12, generator=stream, dtype=torch.float64)[labels]
    return x + torch.randn(60, 12, generator=stream, dtype=torch.float64) + offset, labels


def test_against_scipy():
    x, labels = clouds()
    found, array = distances(x, labels), x.numpy()
    assert found.feature_distance.item() == pytest.approx(pdist(array).mean(), rel=1e-12)
    within = np.mean([pdist(array[labels.numpy() == c]).mean() for c in range(3)])
    assert found.within_class_distance.item() == pytest.approx(within, rel=1e-12)
    angles = np.arccos(1 - pdist(array, "cosine"))
    assert found.angle.item() == pytest.approx(angles.mean(), rel=1e-12)


def test_unequal_classes_weigh_the_same():
    x = torch.tensor([[0.0], [1.0], [0.0], [5.0], [10.0]])
    # Class 0: distance 1. Class 1: distances 5, 10, 5, mean 20 / 3.
    assert distances(x, torch.tensor([0, 0, 1, 1, 1])).within_class_distance.item() == pytest.approx((1 + 20 / 3) / 2)


def test_orthogonal_points_have_closed_forms():
    found = distances(torch.eye(7), torch.arange(7))
    assert found.feature_distance.item() == pytest.approx(math.sqrt(2), rel=1e-12)
    assert found.angle.item() == pytest.approx(math.pi / 2, rel=1e-12)
    assert math.isnan(found.within_class_distance)  # classes of one point


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 1.0, 3.0])
def test_angles_small_and_large(angle):
    x = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    assert distances(x, torch.tensor([0, 1])).angle.item() == pytest.approx(angle, rel=1e-9)


def test_opposite_points_are_pi_apart_whatever_the_rounding():
    x = torch.randn(1, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert distances(torch.cat([x, -3 * x]), torch.tensor([0, 1])).angle.item() == pytest.approx(math.pi, abs=1e-7)


def test_rotation_order_and_scale():
    x, labels = clouds()
    stream = torch.Generator().manual_seed(2)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=stream, dtype=torch.float64)).Q
    order = torch.randperm(60, generator=stream)
    one, other = distances(x, labels), distances(1e-160 * (x @ turn)[order], labels[order])
    assert other.angle.item() == pytest.approx(one.angle.item(), rel=1e-9)
    assert other.feature_distance.item() == pytest.approx(1e-160 * one.feature_distance.item(), rel=1e-9)
    assert other.within_class_distance.item() == pytest.approx(1e-160 * one.within_class_distance.item(), rel=1e-9)


def test_offset_changes_the_angle_only():
    one, other = distances(*clouds()), distances(*clouds(1e3))
    assert [v.item() for v in other[:2]] == pytest.approx([v.item() for v in one[:2]], rel=1e-6)
    assert other.angle < 0.01 * one.angle


def test_degenerate_input():
    same = distances(torch.full((4, 3), 0.1), torch.tensor([0, 0, 1, 1]))
    assert [v.item() for v in same] == [0, 0, 0]
    dead = distances(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]))
    assert dead.feature_distance == 0
    assert math.isnan(dead.angle)
    assert all(math.isnan(v) for v in distances(torch.ones(1, 3), torch.tensor([0])))
    with pytest.raises(ValueError, match="Q = 4"):
        distances(torch.zeros(4, 3), torch.zeros(3, dtype=torch.long))


def test_points_at_the_origin_make_no_angle():
    x, labels = clouds()
    with_origin = torch.cat([x[:30], torch.zeros(2, 12), x[30:]])
    found = distances(with_origin, torch.cat([labels[:30], labels[:2], labels[30:]]))
    assert found.angle.item() == pytest.approx(distances(x, labels).angle.item(), rel=1e-12)
