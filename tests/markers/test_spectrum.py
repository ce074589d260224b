"""Spectrum markers: known spectra, NumPy and scikit-learn written differently, invariances, degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from geomonitor import (
    GeomonitorError,
    effective_rank,
    numerical_rank,
    participation_ratio,
    rankme,
    stable_rank,
)
from geomonitor.markers.marchenko_pastur import spectral_outliers
from geomonitor.markers.singular_values import Spectrum
from geomonitor.markers.spectrum import SPECTRUM_FORMULAS, spectral_decay

MARKERS = [participation_ratio, numerical_rank, effective_rank, stable_rank, rankme]
TRANSLATION_INVARIANT = [participation_ratio, numerical_rank, effective_rank]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(13), dtype=torch.float64)


def with_spectrum(singular_values: Tensor, points: int = 40, width: int = 25) -> Tensor:
    """Centred features with exactly these singular values."""
    generator = torch.Generator().manual_seed(0)
    rank = len(singular_values)
    columns = torch.randn(points, rank, generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(columns - columns.mean(0)).Q
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64)).Q
    return left * singular_values @ right.T


@pytest.fixture
def decaying() -> Tensor:
    """Centred features of a power-law spectrum down to 1e-6."""
    return with_spectrum(torch.logspace(0, -6, 12, dtype=torch.float64))


@pytest.mark.parametrize("marker", MARKERS)
def test_flat_spectrum_counts_its_directions(marker):
    assert marker(with_spectrum(torch.full((5,), 3.0))).item() == pytest.approx(
        5.0, rel=1e-4
    )  # rankme adds 1e-7 a value


def test_two_level_spectrum_by_hand():
    features = with_spectrum(torch.tensor([2.0, 1.0], dtype=torch.float64))
    shares = [0.8, 0.2]
    assert participation_ratio(features).item() == pytest.approx(25 / 17, rel=1e-12)
    assert stable_rank(features).item() == pytest.approx(5 / 4, rel=1e-12)
    entropy = -sum(p * math.log(p) for p in shares)
    assert effective_rank(features).item() == pytest.approx(math.exp(entropy), rel=1e-12)


@pytest.mark.parametrize(("tolerance", "rank"), [(1e-3, 6), (1e-2, 4), (1e-5, 10)])
def test_numerical_rank_counts_singular_values_above_the_tolerance(decaying, tolerance, rank):
    # Singular values 10 ** (-6 i / 11): 1e-3 lies between i = 5 and 6, 1e-2 between 3 and 4, 1e-5 between 9 and 10.
    assert numerical_rank(decaying, tolerance=tolerance).item() == rank


def test_against_scikit_learn_pca():
    features = torch.randn(200, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    features = features * torch.linspace(0.1, 3, 30) + 7
    pca = PCA().fit(features.numpy())
    variance, share = pca.explained_variance_, pca.explained_variance_ratio_
    assert participation_ratio(features).item() == pytest.approx(variance.sum() ** 2 / (variance**2).sum(), rel=1e-10)
    assert effective_rank(features).item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-10)
    assert (
        numerical_rank(features, tolerance=0.3).item() == (pca.singular_values_ >= 0.3 * pca.singular_values_[0]).sum()
    )


def test_raw_markers_against_numpy():
    features = torch.rand(50, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    eigenvalues = np.clip(np.linalg.eigvalsh(features.numpy().T @ features.numpy()), 0, None)
    assert stable_rank(features).item() == pytest.approx(
        np.linalg.norm(features.numpy()) ** 2 / np.linalg.norm(features.numpy(), 2) ** 2, rel=1e-12
    )
    p = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum() + 1e-7
    assert rankme(features).item() == pytest.approx(np.prod(p**-p), rel=1e-9)


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e12])
def test_scale_does_not_matter(marker, decaying, scale):
    assert marker(decaying * scale).item() == pytest.approx(marker(decaying).item(), rel=1e-9)


@pytest.mark.parametrize("marker", MARKERS)
def test_rotation_and_order_do_not_matter(marker, decaying):
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(25, 25, generator=generator, dtype=torch.float64)).Q
    order = torch.randperm(40, generator=generator)
    assert marker((decaying @ rotation)[order]).item() == pytest.approx(marker(decaying).item(), rel=1e-9)


@pytest.mark.parametrize("marker", TRANSLATION_INVARIANT)
def test_offset_does_not_matter(marker):
    features = with_spectrum(torch.logspace(0, -2, 12, dtype=torch.float64))
    assert marker(features + 1e3).item() == pytest.approx(marker(features).item(), rel=1e-6)


def test_small_spread_on_a_large_offset_keeps_its_digits():
    # Raw second moments in float32 gave 17.2 instead of 63.2 here.
    noise = torch.randn(500, 64, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 0.01
    assert participation_ratio(noise + 100).item() == pytest.approx(participation_ratio(noise).item(), rel=1e-9)
    assert participation_ratio(noise).item() > 50


@pytest.mark.parametrize("marker", MARKERS)
def test_more_units_than_points(marker):
    features = torch.randn(10, 300, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    padded = torch.cat([features, torch.zeros(10, 50)], dim=1)
    assert 1 < marker(features).item() <= 10 + 1e-4
    assert marker(padded).item() == pytest.approx(marker(features).item(), rel=1e-10)


@pytest.mark.parametrize("constant", [0.1, 3.0, 1e6])
def test_equal_points(constant):
    features = torch.full((7, 4), constant)
    assert math.isnan(participation_ratio(features))
    assert math.isnan(effective_rank(features))
    assert numerical_rank(features).item() == 0
    assert stable_rank(features).item() == pytest.approx(1)


def test_points_that_differ_by_rounding_are_equal():
    steps = torch.randint(-1, 2, (40, 9), generator=torch.Generator().manual_seed(14)).double()
    features = torch.linspace(1, 3, 9, dtype=torch.float64) * (1 + torch.finfo(torch.float64).eps * steps)
    assert features.std(dim=0).min() > 0
    assert math.isnan(participation_ratio(features))
    assert math.isnan(effective_rank(features))
    assert numerical_rank(features).item() == 0


def test_dead_layer():
    dead = torch.zeros(7, 4)
    assert [math.isnan(marker(dead)) for marker in MARKERS] == [True, False, True, True, True]
    assert numerical_rank(dead).item() == 0


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_every_dtype_gives_float64(marker, dtype):
    features = torch.randint(-5, 6, (30, 8), generator=torch.Generator().manual_seed(6)).to(dtype)
    value = marker(features)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(marker(features.double()).item(), rel=1e-14)


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3), r"shape \(Q, N\)"),
        (torch.zeros(2, 3, 4), r"shape \(Q, N\)"),
        (torch.zeros(0, 4), "at least one point"),
        (torch.tensor([[1.0, math.nan], [0.0, 1.0]]), "1 of 2 rows"),
        (torch.zeros(2, 2, dtype=torch.complex64), "real"),
        ([[1.0]], "torch.Tensor"),
    ],
)
def test_bad_input_is_named(marker, features, message):
    with pytest.raises(ValueError, match=message) as error:
        marker(features)
    assert isinstance(error.value, GeomonitorError)


def power_law(exponent: float, count: int = 120) -> Tensor:
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    return with_spectrum(ranks ** (-exponent / 2), points=150, width=130)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0])
def test_a_power_law_has_its_exponent(exponent):
    decay = spectral_decay(power_law(exponent))
    assert decay.exponent.item() == pytest.approx(exponent, rel=1e-6)
    assert decay.r2.item() == pytest.approx(1)


def test_decay_against_numpy_polyfit():
    features = torch.randn(200, 150, generator=torch.Generator().manual_seed(7), dtype=torch.float64) + 3
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(features.numpy().T)))[::-1][10:100]
    rank = np.arange(11, 101)
    slope, intercept = np.polyfit(np.log(rank), np.log(eigenvalues), 1, w=rank**-0.5)  # polyfit squares its weights
    decay = spectral_decay(features)
    assert decay.exponent.item() == pytest.approx(-slope, rel=1e-9)
    y, fitted = np.log(eigenvalues), intercept + slope * np.log(rank)
    mean = np.average(y, weights=1 / rank)
    r2 = 1 - np.average((y - fitted) ** 2, weights=1 / rank) / np.average((y - mean) ** 2, weights=1 / rank)
    assert decay.r2.item() == pytest.approx(r2, rel=1e-9)


def test_decay_stops_where_the_spectrum_does():
    assert spectral_decay(power_law(2.0, count=40)).exponent.item() == pytest.approx(2, rel=1e-6)
    assert math.isnan(spectral_decay(power_law(2.0, count=12)).exponent)
    assert math.isnan(spectral_decay(torch.ones(50, 50)).exponent)


@pytest.mark.parametrize("spikes", [0, 1, 7])
def test_spikes_above_noise_are_counted(spikes):
    noise = torch.randn(400, 100, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    noise[:, :spikes] *= 6  # eigenvalue 36 and more, edge 2.25 times the mean eigenvalue of 1 to 3.5
    assert spectral_outliers(noise).item() == spikes
    assert spectral_outliers(1e-9 * noise + 1e-6).item() == spikes


def test_outliers_against_the_written_edge():
    features = torch.randn(60, 80, generator=torch.Generator().manual_seed(9), dtype=torch.float64).exp()
    covariance = np.cov(features.numpy().T, bias=True)
    edge = np.trace(covariance) / 80 * (1 + math.sqrt(80 / 60)) ** 2
    assert spectral_outliers(features).item() == (np.linalg.eigvalsh(covariance) > edge).sum()
    assert math.isnan(spectral_outliers(torch.ones(5, 3)))


@pytest.mark.parametrize("change", ["scale", "offset", "rotation", "order"])
def test_shape_of_the_spectrum_does_not_mind(change):
    features = power_law(1.5)
    stream = torch.Generator().manual_seed(10)
    expected = [*spectral_decay(features), spectral_outliers(features)]
    if change == "scale":
        features = 1e-12 * features
    elif change == "offset":
        features = features + 1e3
    elif change == "rotation":
        features = features @ torch.linalg.qr(torch.randn(130, 130, generator=stream, dtype=torch.float64)).Q
    else:
        features = features[torch.randperm(150, generator=stream)]
    found = [*spectral_decay(features), spectral_outliers(features)]
    assert [v.item() for v in found] == pytest.approx([v.item() for v in expected], rel=1e-6)


DECOMPOSITIONS = ("svd", "svdvals", "eigh", "eigvalsh", "eig", "eigvals", "qr")


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)])
@pytest.mark.parametrize(
    ("markers", "expected"),
    [
        (["participation_ratio"], []),
        (["participation_ratio", "numerical_rank", "effective_rank", "spectral_outliers"], ["eigvalsh"]),
        (["spectral_decay", "spectral_decay_r2"], ["svdvals"]),
        (["rankme", "stable_rank"], ["svdvals"]),
        (list(SPECTRUM_FORMULAS), ["eigvalsh", "svdvals", "svdvals"]),
    ],
)
def test_each_decomposition_is_made_once_and_only_where_a_marker_needs_it(shape, markers, expected, monkeypatch):
    calls = []
    for name in DECOMPOSITIONS:
        original = getattr(torch.linalg, name)
        monkeypatch.setattr(
            torch.linalg,
            name,
            lambda a, *args, _f=original, _n=name, **kw: (calls.append((_n, a.shape)), _f(a, *args, **kw))[1],
        )
    spectrum = Spectrum.of(torch.randn(*shape, generator=torch.Generator().manual_seed(11)) + 5)
    for name in markers:
        SPECTRUM_FORMULAS[name](spectrum)
    assert sorted(name for name, _ in calls) == expected
    assert all(min(size) <= min(shape) + 1 for _, size in calls)  # the smaller of N x N and Q x Q


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (50, 50)])
def test_both_spectra_are_those_of_lapack(shape):
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(12), dtype=torch.float64) + 5
    spectrum = Spectrum.of(features)
    raw = np.linalg.svd(features.numpy(), compute_uv=False)
    centered = np.linalg.svd(features.numpy() - features.numpy().mean(0), compute_uv=False)
    assert spectrum.raw.numpy() == pytest.approx(raw, abs=1e-13 * raw[0])
    assert (spectrum.scale * spectrum.centered).numpy() == pytest.approx(centered, abs=1e-13 * centered[0])
    eigenvalues = (spectrum.scale.square() * spectrum.eigenvalues).numpy()
    assert eigenvalues == pytest.approx(centered**2, abs=1e-13 * centered[0] ** 2)


RAW = {
    "square": random(60, 60),
    "long mean": random(20, 80) + 1e6 * random(80),
    "short mean": random(20, 80) + 1e-9,
    "equal points": random(80).expand(5, -1),
    "nothing": torch.zeros(5, 7, dtype=torch.float64),
    "one point": random(1, 7),
    "fourteen decades": torch.diag(torch.logspace(0, -14, 15, dtype=torch.float64)),
    "low rank": random(50, 3) @ random(3, 40) + random(40),
    "tiny": 1e-150 * random(20, 10),
    "huge": 1e150 * random(20, 10),
}


@pytest.mark.parametrize("case", RAW)
def test_the_raw_spectrum_against_lapack_on_hard_input(case):
    expected = torch.linalg.svdvals(RAW[case])
    found = Spectrum.of(RAW[case]).raw
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-14 * expected.max()


@pytest.mark.parametrize("decades", [1, 3.1, 6, 10])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_the_rank_by_eigenvalues_is_that_by_singular_values(decades, shape):
    rank = 30
    features = with_spectrum(torch.logspace(0, -decades, rank, dtype=torch.float64), *shape) + 3
    by_eigenvalues = SPECTRUM_FORMULAS["numerical_rank"](Spectrum.of(features))
    assert by_eigenvalues == numerical_rank(features) == (torch.logspace(0, -decades, rank) >= 1e-3).sum()
