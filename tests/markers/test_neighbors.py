"""TwoNN: clouds of known dimension, the authors' line fit written with SciPy and scikit-learn, duplicates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from geomonitor.markers.neighbors import intrinsic_dimension


def flat_cloud(dimension: int, points: int = 1500, width: int = 20, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    flat = torch.rand(points, dimension, generator=stream, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(width, dimension, generator=stream, dtype=torch.float64)).Q
    return flat @ basis.T


def by_line_fit(x: np.ndarray, trimmed: float = 0.1) -> float:
    """Facco et al. 2017: slope through the origin of -log(1 - F) on log(r2 / r1), the top tenth left out."""
    distance, _ = NearestNeighbors(n_neighbors=3).fit(x).kneighbors(x)
    mu = np.sort(distance[:, 2] / distance[:, 1])
    empirical = np.arange(len(mu)) / len(mu)
    kept = int(len(mu) * (1 - trimmed))
    u, v = np.log(mu[:kept]), -np.log1p(-empirical[:kept])
    return float(u @ v / (u @ u))


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_flat_clouds_have_their_dimension(dimension):
    # Standard error of the estimate: d / sqrt(n) = 2.6 %; the edges of the cube lower it a little in 4 dimensions.
    assert intrinsic_dimension(flat_cloud(dimension)).item() == pytest.approx(dimension, rel=0.08)


@pytest.mark.parametrize("dimension", [1, 2, 4, 8])
def test_against_the_line_fit_of_the_authors(dimension):
    # The line fit and maximum likelihood are two estimators of one thing: they differ by their noise.
    x = flat_cloud(dimension)
    assert intrinsic_dimension(x).item() == pytest.approx(by_line_fit(x.numpy()), rel=0.05)


def test_against_scikit_dimension():
    skdim = pytest.importorskip("skdim")
    x = flat_cloud(3)
    assert intrinsic_dimension(x).item() == pytest.approx(skdim.id.TwoNN().fit(x.numpy()).dimension_, rel=0.05)


def test_exponential_ratios_by_hand():
    # 1-d points 0, 1, 3, 7: r1 = 1, 1, 2, 4 and r2 = 3, 2, 3, 6; the largest of 4 is trimmed (int(3.6) = 3 kept).
    logs = sorted(math.log(r) for r in (3, 2, 1.5, 1.5))
    expected = 3 / (sum(logs[:3]) + logs[2])
    assert intrinsic_dimension(torch.tensor([[0.0], [1.0], [3.0], [7.0]])).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("change", ["scale", "offset", "rotation", "order", "padding", "duplicates"])
def test_invariances(change):
    x = flat_cloud(3, points=300)
    expected = intrinsic_dimension(x).item()
    stream = torch.Generator().manual_seed(1)
    if change == "scale":
        x = 1e-12 * x
    elif change == "offset":
        x = x + 1e3
    elif change == "rotation":
        x = x @ torch.linalg.qr(torch.randn(20, 20, generator=stream, dtype=torch.float64)).Q
    elif change == "order":
        x = x[torch.randperm(300, generator=stream)]
    elif change == "padding":
        x = torch.cat([x, torch.zeros(300, 7)], dim=1)
    else:
        x = torch.cat([x, x[:100], x[:50]])
    assert intrinsic_dimension(x).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "x", [torch.zeros(5, 3), torch.eye(2), torch.eye(5), torch.tensor([[1.0, 2.0]]).repeat(4, 1), torch.ones(1, 1)]
)
def test_undefined_is_nan(x):
    assert math.isnan(intrinsic_dimension(x))  # fewer than three different points, or all equally far apart
