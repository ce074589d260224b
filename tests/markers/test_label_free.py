"""Markers without labels: known values, an outside reference, invariances, degenerate inputs, standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances

import geomonitor as gm
from geomonitor.glue.instances import instance_geometry
from geomonitor.markers.activity import top_channel_share
from geomonitor.markers.instances import alignment, instance_snr, lidar
from geomonitor.markers.tokens import sequence_entropy, token_entropy
from geomonitor.markers.unit_vectors import centred_mean_cosine, mean_cosine, uniformity

POINTS = {
    "uniformity": uniformity,
    "mean_cosine": mean_cosine,
    "centred_mean_cosine": centred_mean_cosine,
    "top_channel_share": top_channel_share,
}
VIEWS = {"lidar": lidar, "instance_snr": instance_snr, "alignment": alignment}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> torch.Tensor:
    return torch.linalg.qr(normal(width, width, seed=9)).Q


def viewed(instances: int, views: int, rank: int, noise: float, width: int = 64, seed: int = 0):
    centres = normal(instances, rank, seed=seed) @ normal(rank, width, seed=seed + 1)
    points = centres.repeat_interleave(views, 0) + noise * normal(instances * views, width, seed=seed + 2)
    return points, torch.arange(instances).repeat_interleave(views)


def upper(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.triu_indices(len(matrix), 1)]


def test_markers_of_directions_are_those_of_sklearn():
    x = normal(40, 9) + 0.5
    array = x.numpy()
    units = array / np.linalg.norm(array, axis=1, keepdims=True)
    kernel = np.exp(-2 * upper(euclidean_distances(units, squared=True)))
    expected = {
        "uniformity": math.log(kernel.mean()),
        "mean_cosine": upper(cosine_similarity(array)).mean(),
        "centred_mean_cosine": upper(cosine_similarity(array - array.mean(0))).mean(),
        "top_channel_share": (array**2).mean(0).max() / (array**2).mean(0).sum(),
    }
    for name, function in POINTS.items():
        assert function(x).value.item() == pytest.approx(expected[name], rel=1e-10), name


def test_uniformity_of_the_uniform_sphere():
    scipy = pytest.importorskip("scipy.special")
    found = uniformity(normal(2000, 16))
    expected = math.log(scipy.hyp0f1(8, 4)) - 4
    assert found.value.item() == pytest.approx(expected, abs=4 * found.standard_error.item())
    assert expected == pytest.approx(-3.513, abs=1e-3)
    assert uniformity(torch.ones(5, 3)).value.item() == pytest.approx(0, abs=1e-12)


def test_a_rogue_channel_shows_in_the_raw_cosine_only():
    x = normal(500, 64)
    x[:, 3] += 100
    assert mean_cosine(x).value.item() > 0.97
    assert abs(centred_mean_cosine(x).value.item()) < 0.01
    assert top_channel_share(x).value.item() > 0.98


@pytest.mark.parametrize("name", POINTS)
def test_what_does_not_change_markers_of_points(name):
    x = normal(30, 8) + 1
    value = POINTS[name](x).value.item()
    assert POINTS[name](1e-150 * x).value.item() == pytest.approx(value, rel=1e-9)
    assert POINTS[name](x.flip(0)).value.item() == pytest.approx(value, rel=1e-9)
    turned = POINTS[name](x @ rotation(8)).value.item()
    assert (turned == pytest.approx(value, rel=1e-9)) == (name != "top_channel_share")


@pytest.mark.parametrize("name", POINTS)
def test_the_error_of_a_marker_of_points_is_its_scatter(name):
    found = [POINTS[name]((normal(100, 6, seed=seed).exp()) * torch.tensor([2, 1, 1, 1, 1, 1])) for seed in range(150)]
    scatter = torch.stack([f.value for f in found]).std().item()
    claimed = torch.stack([f.standard_error for f in found]).median().item()
    assert 0.6 < claimed / scatter < 1.6


@pytest.mark.parametrize("name", POINTS)
def test_degenerate_points(name):
    assert math.isnan(POINTS[name](torch.zeros(4, 3)).value.item())
    single = POINTS[name](torch.ones(1, 3))
    assert math.isnan(single.standard_error.item())
    with pytest.raises(gm.InputError):
        POINTS[name](torch.tensor([[math.nan, 1.0]]))
    if name == "centred_mean_cosine":
        assert math.isnan(POINTS[name](torch.full((9, 3), 0.1)).value.item())


def reference_lidar(x: np.ndarray, instances: np.ndarray, delta: float) -> float:
    """As in the paper: by whitening, with an absolute ridge."""
    groups = [x[instances == i] for i in np.unique(instances)]
    means = np.stack([g.mean(0) for g in groups])
    between = np.cov(means.T, bias=False)
    within = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in groups) / (len(groups) * (len(groups[0]) - 1))
    values, vectors = np.linalg.eigh(within + delta * np.eye(x.shape[1]))
    whitening = vectors @ np.diag(values**-0.5) @ vectors.T
    found = np.abs(np.linalg.eigvalsh(whitening @ between @ whitening)) + 1e-8
    p = found / found.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("width", [12, 64])
def test_lidar_is_the_published_one_with_its_ridge(width):
    x, instances = viewed(30, 5, 6, 0.5, width=width)
    for scale in (1, 10):
        expected = reference_lidar(scale * x.numpy(), instances.numpy(), 1e-4)
        assert lidar(scale * x, instances, delta=1e-4).value.item() == pytest.approx(expected, rel=1e-7)


def test_lidar_of_a_known_rank_and_of_noise():
    x, instances = viewed(100, 10, 4, 0.05)
    assert lidar(x, instances).value.item() == pytest.approx(4, abs=1.2)
    noise, instances = viewed(100, 10, 4, 1.0)
    noise = normal(1000, 64)
    assert lidar(noise, instances).value.item() > 40
    found = instance_snr(noise, instances)
    assert abs(found.value.item()) < 4 * found.standard_error.item() < 0.05


def test_signal_to_noise_is_a_one_way_analysis_of_variance():
    x, instances = viewed(20, 6, 5, 2.0)
    groups = x.reshape(20, 6, -1).numpy()
    within = groups.var(1, ddof=1).mean(0).sum()
    between = groups.mean(1).var(0, ddof=1).sum()
    assert instance_snr(x, instances).value.item() == pytest.approx((between - within / 6) / within, rel=1e-9)


def test_alignment_is_the_mean_over_pairs_of_views():
    x, instances = viewed(7, 4, 3, 1.0)
    units = x / x.norm(dim=1, keepdim=True)
    expected = torch.stack([torch.pdist(units[instances == i]).square().mean() for i in range(7)]).mean()
    assert alignment(x, instances).value.item() == pytest.approx(expected.item(), rel=1e-10)
    assert alignment(x[::4].repeat_interleave(4, 0), instances).value.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", VIEWS)
def test_what_does_not_change_markers_of_views(name):
    x, instances = viewed(25, 4, 6, 0.5, width=20)
    value = VIEWS[name](x, instances).value.item()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    for other, labels in ((1e-9 * x, instances), (x @ rotation(20), instances), (x[order], instances[order] + 5)):
        assert VIEWS[name](other, labels).value.item() == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize("name", VIEWS)
def test_the_error_of_a_marker_of_views_is_its_scatter(name):
    found = [VIEWS[name](*viewed_of_one_model(seed)) for seed in range(60)]
    scatter = torch.stack([f.value for f in found]).std().item()
    claimed = torch.stack([f.standard_error for f in found]).median().item()
    assert 0.5 < claimed / scatter < 2


def viewed_of_one_model(seed: int):
    """Other instances of one distribution."""
    x = normal(60, 6, seed=10 + seed) @ normal(6, 12, seed=1)
    return x.repeat_interleave(4, 0) + normal(240, 12, seed=1000 + seed), torch.arange(60).repeat_interleave(4)


def test_degenerate_views():
    x, instances = viewed(6, 3, 2, 0.0)
    assert math.isnan(lidar(x, instances).value.item())
    assert math.isnan(instance_snr(x, instances).value.item())
    assert math.isnan(lidar(x, torch.arange(len(x))).value.item())  # one view each
    assert math.isnan(alignment(x, torch.arange(len(x))).value.item())
    assert math.isnan(alignment(0 * x, instances).value.item())
    for function in (lidar, instance_snr):
        with pytest.raises(gm.InputError, match="at least 2 instances"):
            function(x, 0 * instances)


def test_the_geometry_of_instances_is_that_of_classes():
    x, instances = viewed(20, 5, 8, 0.5)
    options = {"mode": "pairwise", "pairs": 60, "seed": 3, "directions": 40}
    labelled, found = gm.manifold_geometry(x, instances, **options), instance_geometry(x, instances, **options)
    for name in found._fields:
        assert torch.equal(getattr(found, name).value, getattr(labelled, name))
        assert getattr(found, name).standard_error > getattr(labelled.standard_error, name)


def test_many_instances_saturate_a_joint_problem_and_no_pair():
    x, instances = viewed(100, 10, 4, 0.3, width=18)
    with pytest.warns(gm.GeomonitorWarning) as warned:
        joint = instance_geometry(x, instances, mode="joint", directions=20)
    assert all(math.isnan(each.value) and math.isnan(each.standard_error) for each in joint)
    assert any("fewer instances, or mode=" in str(each.message) for each in warned)
    assert instance_geometry(x, instances, directions=20).capacity.value > 0


def test_the_entropy_of_white_tokens():
    for length, expected in ((64, 4.018), (512, 5.296)):
        found = torch.stack([sequence_entropy(normal(length, 256, seed=seed)) for seed in range(3)]).mean()
        assert found.item() == pytest.approx(expected, abs=0.01)


def test_the_entropy_is_that_of_the_gram_matrix():
    x = normal(12, 5) + 3
    centred = x - x.mean(0)
    units = (centred / centred.norm(dim=1, keepdim=True)).numpy()
    p = np.linalg.eigvalsh(units @ units.T / 12)
    p = p[p > 1e-12]
    assert sequence_entropy(x).item() == pytest.approx(-(p * np.log(p)).sum(), rel=1e-9)
    assert sequence_entropy(7 * x @ rotation(5)).item() == pytest.approx(sequence_entropy(x).item(), rel=1e-9)


def test_sequences_are_cut_to_one_length():
    sequences = [normal(length, 8, seed=length) for length in (10, 12, 5)]
    found = token_entropy(sequences, length=10)
    alone = torch.stack([sequence_entropy(x[:10]) for x in sequences[:2]]) / math.log(8)
    assert found.value.item() == pytest.approx(alone.mean().item(), rel=1e-12)
    assert found.standard_error.item() == pytest.approx(alone.std().item() / 2**0.5, rel=1e-12)
    assert math.isnan(token_entropy(sequences, length=13).value.item())
    assert math.isnan(sequence_entropy(torch.ones(4, 3)).item())
    with pytest.raises(gm.InputError, match="at least 2 units"):
        token_entropy([normal(4, 1)], length=3)


def test_the_metric_of_instances_takes_any_split():
    x, instances = viewed(8, 4, 3, 0.5, width=10)
    metric = gm.InstanceStructure(8, per_class=4)
    for part in torch.arange(32).split(5):
        metric.update(x[part], instances[part])
    values = metric.compute()
    for name, function in VIEWS.items():
        assert values[name].item() == pytest.approx(function(x, instances).value.item(), rel=1e-9)
        error = function(x, instances).standard_error.item()
        assert values[f"{name}_standard_error"].item() == pytest.approx(error, rel=1e-9)
