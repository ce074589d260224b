"""The spectrum against pure noise: the density integrated by SciPy, known spectra, invariances, degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize
from torch import Tensor

from geomonitor.markers.marchenko_pastur import mp_distance, spectral_outliers, variance_above_edge
from geomonitor.markers.spectrum import top_eigenvalue_share

NEW = (top_eigenvalue_share, variance_above_edge, mp_distance)
SHAPES = ((500, 128), (500, 400), (200, 800))


def noise(points: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(points, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def power_law(points: int, width: int) -> Tensor:
    """Eigenvalues of the covariance that fall as 1 / rank."""
    return noise(points, width) * torch.arange(1, width + 1, dtype=torch.float64) ** -0.5


def spikes(points: int, width: int) -> Tensor:
    """Three directions that bear 24 parts of the variance, the noise of all others one."""
    x = noise(points, width)
    x[:, :3] *= (8 * width) ** 0.5
    return x


def with_eigenvalues(eigenvalues: Tensor, points: int, width: int) -> Tensor:
    """Centred features with exactly these eigenvalues of the scatter."""
    columns = noise(points, len(eigenvalues))
    left = torch.linalg.qr(columns - columns.mean(0)).Q
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(noise(width, len(eigenvalues), seed=1)).Q
    return left * eigenvalues.sqrt() @ right.T


def density(x: float, q: float) -> float:
    a, b = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    return math.sqrt(max((b - x) * (x - a), 0.0)) / (2 * math.pi * q * x)


def distance_by_scipy(features: Tensor) -> float:
    """The integral of the distance of the distribution functions, all by quadrature of the density."""
    points, width = len(features) - 1, features.shape[1]
    count, q = min(points, width), min(points, width) / max(points, width)
    values = np.linalg.eigvalsh(np.cov(features.numpy().T))[-count:]
    values = values / values.mean()
    a, b = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    grid = np.linspace(0, max(values[-1], b), 100_001)
    angles = np.arccos(np.clip((1 + q - grid) / (2 * math.sqrt(q)), -1, 1))
    theta = np.linspace(0, math.pi, 20_001)  # the density in x is infinite at the lower edge if q is 1; here it is not
    x = 1 + q - 2 * math.sqrt(q) * np.cos(theta)
    weight = [density(v, q) * 2 * math.sqrt(q) * math.sin(t) for v, t in zip(x, theta, strict=True)]
    law = np.interp(angles, theta, integrate.cumulative_simpson(weight, x=theta, initial=0))
    law = np.where(grid <= a, 0, np.where(grid >= b, 1, law))
    own = np.searchsorted(values, grid, side="right") / count
    return float(integrate.trapezoid(np.abs(own - law), grid))


@pytest.mark.parametrize("make", [noise, power_law, spikes])
@pytest.mark.parametrize("shape", [(60, 20), (60, 45), (30, 80)])
def test_the_distance_against_scipy(make, shape):
    assert mp_distance(make(*shape)).item() == pytest.approx(distance_by_scipy(make(*shape)), abs=1e-4)


def test_eigenvalues_at_the_quantiles_of_the_law_are_near_it():
    # Each eigenvalue stands in the middle of its share; SciPy finds it as a root of an integral of the density.
    count, points = 20, 81
    q = count / (points - 1)
    a, b = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    shares = (np.arange(count) + 0.5) / count
    middle = [
        optimize.brentq(lambda x, s=s: integrate.quad(density, a, x, args=(q,))[0] - s, a + 1e-9, b) for s in shares
    ]
    at_quantiles = mp_distance(with_eigenvalues(torch.tensor(middle), points, count)).item()
    moved = torch.tensor(middle)
    moved[-1] += 1.0  # one of twenty moved by 1; the mean rises by 1 / 20
    assert at_quantiles < 0.05
    assert mp_distance(with_eigenvalues(moved, points, count)).item() > at_quantiles + 0.04


def test_one_direction_is_as_far_from_noise_as_its_quantiles_say():
    # Of N units one bears all: N - 1 eigenvalues are 0, one is N. Each lies outside the law, so the distance is the
    # law's mean below its quantile 1 - 1/N, plus the rest of the way to N: 2 (1 - the moment above that quantile).
    points, width = 101, 4
    q = width / (points - 1)
    b = (1 + math.sqrt(q)) ** 2
    a = (1 - math.sqrt(q)) ** 2
    cut = optimize.brentq(lambda x: integrate.quad(density, x, b, args=(q,))[0] - 1 / width, a, b)
    above = integrate.quad(lambda x: x * density(x, q), cut, b)[0]
    x = noise(points, 1) * torch.eye(width, dtype=torch.float64)[0]
    assert mp_distance(x).item() == pytest.approx(2 * (1 - above), rel=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_three_kinds_of_spectrum_read(shape):
    assert mp_distance(noise(*shape)).item() < 0.012
    assert 0.7 < mp_distance(power_law(*shape)).item() < 0.9
    assert 1.75 < mp_distance(spikes(*shape)).item() < 1.95
    assert variance_above_edge(noise(*shape)).item() < 0.03
    assert 0.5 < variance_above_edge(power_law(*shape)).item() < 0.6
    assert variance_above_edge(spikes(*shape)).item() == pytest.approx(0.96, abs=0.01)


def test_known_shares():
    x = with_eigenvalues(torch.tensor([8.0, 1.0, 1.0]).double(), 1000, 3)  # the edge is 10/3 and little more
    assert top_eigenvalue_share(x).item() == pytest.approx(0.8, rel=1e-12)
    assert variance_above_edge(x).item() == pytest.approx(0.8, rel=1e-12)
    flat = with_eigenvalues(torch.ones(5).double(), 40, 5)
    assert top_eigenvalue_share(flat).item() == pytest.approx(0.2, rel=1e-12)
    assert variance_above_edge(flat).item() == 0


def test_the_edge_is_that_of_the_outliers():
    for seed in range(10):
        x = noise(60, 80, seed).exp()
        eigenvalues = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
        counted = int(spectral_outliers(x))
        share = eigenvalues[:counted].sum() / eigenvalues.sum()
        assert variance_above_edge(x).item() == pytest.approx(share, rel=1e-9)
        assert top_eigenvalue_share(x).item() == pytest.approx(eigenvalues[0] / eigenvalues.sum(), rel=1e-9)


@pytest.mark.parametrize("marker", NEW)
@pytest.mark.parametrize("make", [noise, power_law, spikes])
@pytest.mark.parametrize("change", ["scale", "offset", "rotation", "order"])
def test_the_shape_of_the_spectrum_alone_counts(marker, make, change):
    x = make(90, 40)
    expected = marker(x).item()
    stream = torch.Generator().manual_seed(2)
    changed = {
        "scale": 1e-12 * x,
        "offset": x + 1e3,
        "rotation": x @ torch.linalg.qr(torch.randn(40, 40, generator=stream, dtype=torch.float64)).Q,
        "order": x[torch.randperm(90, generator=stream)],
    }
    assert marker(changed[change]).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("marker", NEW)
def test_points_without_a_spectrum(marker):
    assert math.isnan(marker(torch.ones(7, 4)))
    assert math.isnan(marker(torch.tensor([[1.0, 2.0]])))
    assert math.isfinite(marker(torch.tensor([[1.0, 2.0], [2.0, 2.0]])))
    with pytest.raises(ValueError, match="1 of 2 rows"):
        marker(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))


@pytest.mark.parametrize("shape", [(20, 1), (2, 9), (400, 399), (400, 400), (400, 401), (20_000, 2)])
def test_the_distance_of_noise_at_the_edges_of_the_ratio(shape):
    # The law of one unit is a line around 1; at Q - 1 = N its density is infinite at 0.
    found = mp_distance(noise(*shape)).item()
    assert math.isfinite(found)
    assert 0 <= found < (0.5 if min(shape) < 3 else 0.02)
