"""Anchor points of single samples, against the primal problem and against the measures made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch.testing import assert_close

import geomonitor as gm
from geomonitor.glue.draws import draw_dichotomies, draw_directions
from geomonitor.glue.joint import anchor_points


@pytest.fixture
def cloud():
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([2, 0, 1] * 8)
    centers = 2 * torch.randn(3, 12, generator=generator, dtype=torch.float64)
    return 5 * (centers[labels] + torch.randn(24, 12, generator=generator, dtype=torch.float64)), labels


def test_anchors_are_the_points_that_scipys_dual_weights_pick(cloud):
    points, labels = cloud
    t, y = draw_directions(6, 12, seed=0), draw_dichotomies(6, 3, "balanced", seed=0)
    found = anchor_points(points, labels, t, y)
    for sample in range(6):
        signed = (y[sample][labels][:, None] * points).numpy()
        weights = nnls(signed.T, t[sample].numpy())[0]
        for c in range(3):
            mass = weights * (labels == c).numpy()
            anchor = mass @ points.numpy() / mass.sum() if mass.sum() else np.zeros(12)
            assert_close(found[sample, c].numpy(), anchor, rtol=1e-7, atol=1e-7)  # nnls stops at about 1e-8


def test_mean_anchors_have_the_alignment_that_the_measure_reports(cloud):
    points, labels = cloud
    t, y = draw_directions(40, 12, seed=1), draw_dichotomies(40, 3, "balanced", seed=1)
    centers = anchor_points(points, labels, t, y).mean(dim=0)
    units = torch.nn.functional.normalize(centers)
    cosines = (units @ units.T)[~torch.eye(3, dtype=torch.bool)]
    measured = gm.manifold_geometry(points, labels, directions=t, dichotomies=y)
    assert_close(cosines.mean(), measured.center_alignment, rtol=0, atol=1e-9)


def test_classes_of_unequal_size_and_half_precision(cloud):
    points, labels = cloud
    kept = (labels != 1) | (torch.arange(24) < 6)
    t, y = draw_directions(5, 12, seed=0), draw_dichotomies(5, 3, "random", seed=0)
    exact = anchor_points(points[kept].half().double(), labels[kept], t, y)
    assert_close(anchor_points(points[kept].half(), labels[kept], t, y), exact)
