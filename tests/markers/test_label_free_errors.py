"""Constants and standard errors of the markers without labels, each against a direct computation in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import geomonitor as gm
from geomonitor.glue import instances as glue_instances
from geomonitor.glue.instances import instance_geometry
from geomonitor.markers.activity import top_channel_share
from geomonitor.markers.instances import alignment, instance_snr, lidar
from geomonitor.markers.tokens import sequence_entropy, token_entropy
from geomonitor.markers.unit_vectors import centred_mean_cosine, mean_cosine, uniformity
from tests.markers.test_label_free import normal, reference_lidar, viewed


def jackknife(values: np.ndarray) -> float:
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum()))


def without_each(function: Callable, x: torch.Tensor) -> float:
    kept = ~torch.eye(len(x), dtype=torch.bool)
    return jackknife(np.array([function(x[rows]).value.item() for rows in kept]))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_ridge_of_lidar_is_a_hundredth_of_the_mean_variance_within(scale: float):
    x, instances = viewed(30, 5, 6, 0.5, width=12)
    within = x.reshape(30, 5, 12).numpy().var(1, ddof=1).mean(0).sum()
    expected = reference_lidar(x.numpy(), instances.numpy(), 0.01 * within / 12)
    assert lidar(scale * x, instances).value.item() == pytest.approx(expected, rel=1e-9)


def test_the_constant_in_the_entropy_of_lidar_counts_for_each_unit():
    """One direction of 40 that is as weak as the constant: all others weigh half as much each."""
    x = torch.zeros(20, 40, dtype=torch.float64)
    instances = torch.arange(10).repeat_interleave(2)
    x[:, 0] = 1e-4 * torch.arange(10).repeat_interleave(2)
    x[:, 1:] = normal(10, 39).repeat_interleave(2, 0) * torch.tensor([1.0, -1.0]).repeat(10)[:, None]
    expected = reference_lidar(x.numpy(), instances.numpy(), 1.0)
    assert expected > 5
    assert lidar(x, instances, delta=1.0).value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("function", [lidar, instance_snr])
def test_the_error_leaves_out_every_twentieth_instance_in_turn(function: Callable):
    x, instances = viewed(47, 3, 6, 0.5, width=8)
    left_out = [function(x[instances % 20 != b], instances[instances % 20 != b]).value.item() for b in range(20)]
    assert function(x, instances).standard_error.item() == pytest.approx(jackknife(np.array(left_out)), rel=1e-9)


def test_signal_to_noise_of_views_of_unequal_number():
    x, instances = viewed(6, 6, 3, 1.0, width=4)
    kept = torch.arange(6).repeat(6) < torch.tensor([2, 6, 3, 4, 5, 2])[instances]
    groups = [x[kept & (instances == i)].numpy() for i in range(6)]
    within = sum(((g - g.mean(0)) ** 2).sum() for g in groups) / sum(len(g) - 1 for g in groups)
    between = np.stack([g.mean(0) for g in groups]).var(0, ddof=1).sum()
    expected = (between - within * np.mean([1 / len(g) for g in groups])) / within
    assert instance_snr(x[kept], instances[kept]).value.item() == pytest.approx(expected, rel=1e-9)


def test_alignment_leaves_out_single_views_and_views_at_the_origin():
    x, instances = viewed(7, 4, 3, 1.0)
    units = x / x.norm(dim=1, keepdim=True)
    distances = np.array([torch.pdist(units[instances == i]).square().mean().item() for i in range(7)])
    more = torch.cat([x, normal(1, 64), 0 * x[:1], x[:3]])
    found = alignment(more, torch.cat([instances, torch.tensor([50, 60, 60, 60, 60])]))
    assert found.value.item() == pytest.approx(distances.mean(), rel=1e-10)
    assert found.standard_error.item() == pytest.approx(distances.std(ddof=1) / 7**0.5, rel=1e-10)


def test_the_error_of_uniformity_is_that_of_a_u_statistic():
    x = normal(25, 4) + 0.5
    units = x / x.norm(dim=1, keepdim=True)
    kernel = np.exp(-2 * torch.cdist(units, units).square().numpy())
    of_point = (kernel.sum(1) - 1) / 24
    expected = 2 * of_point.std(ddof=1) / 25**0.5 / of_point.mean()
    assert uniformity(x).standard_error.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("function", [uniformity, mean_cosine])
def test_points_at_the_origin_are_left_out(function: Callable):
    x = normal(20, 4) + 0.5
    found, expected = function(torch.cat([x, 0 * x[:3]])), function(x)
    assert found.value.item() == pytest.approx(expected.value.item(), rel=1e-12)
    assert found.standard_error.item() == pytest.approx(expected.standard_error.item(), rel=1e-12)


def test_the_error_of_the_mean_cosine_is_its_jackknife():
    x = normal(25, 4) + 0.5
    assert mean_cosine(x).standard_error.item() == pytest.approx(without_each(mean_cosine, x), rel=1e-9)


def test_the_error_of_the_centred_cosine_is_its_jackknife_to_first_order():
    x = normal(400, 3).exp()
    expected = without_each(centred_mean_cosine, x)
    assert centred_mean_cosine(x).standard_error.item() == pytest.approx(expected, rel=0.02)


def test_the_error_of_the_largest_channel():
    """Share 0.9 of 10, of points whose squares are (9, 0) and (0, 1)."""
    found = top_channel_share(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    assert found.standard_error.item() == pytest.approx(0.18, rel=1e-12)
    x = normal(400, 3) * torch.tensor([2.0, 1.0, 1.0])
    assert top_channel_share(x).standard_error.item() == pytest.approx(without_each(top_channel_share, x), rel=0.02)


def test_a_point_in_the_mean_has_no_direction():
    x = torch.cat([normal(10, 3), torch.zeros(1, 3)])
    x[:10] -= x[:10].mean(0)
    x += torch.tensor([0.1, 0.7, 1e3])  # the mean is that point up to rounding
    assert centred_mean_cosine(x).value.item() == pytest.approx(centred_mean_cosine(x[:10]).value.item(), rel=1e-9)
    assert sequence_entropy(x).item() == pytest.approx(sequence_entropy(x[:10]).item(), rel=1e-9)


def test_the_first_tokens_of_a_sequence_count():
    x = normal(30, 8)
    assert token_entropy([x], length=6).value.item() == pytest.approx(sequence_entropy(x[:6]).item() / math.log(6))


def test_sixty_pairs_of_instances_are_drawn():
    x, instances = viewed(14, 3, 5, 0.5, width=20)  # 91 pairs
    labelled = gm.manifold_geometry(x, instances, mode="pairwise", pairs=60, directions=5)
    assert torch.equal(instance_geometry(x, instances, directions=5).capacity.value, labelled.capacity)


def test_the_error_adds_the_scatter_of_the_measures_over_pairs():
    x, instances = viewed(12, 5, 8, 0.5, width=20)
    options = {"mode": "pairwise", "pairs": 30, "directions": 20}
    labelled, found = gm.manifold_geometry(x, instances, **options), instance_geometry(x, instances, **options)
    samples = labelled.samples
    assert samples.converged.all()
    a, b, c = (each.mean(1).numpy() for each in (samples.a, samples.b, samples.c))
    of_pair = {"capacity": 2 / a, "dimension": b / 2, "radius": np.sqrt(c / (b - c)), "utility": c / a}
    for name, values in of_pair.items():
        assert values.mean() == pytest.approx(getattr(labelled, name).item(), rel=1e-6), name
        over_directions = getattr(labelled.standard_error, name).item()
        expected = math.hypot(over_directions, values.std(ddof=1) / 30**0.5)
        assert getattr(found, name).standard_error.item() == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("above", [True, False])
def test_a_joint_problem_is_saturated_above_that_share_of_the_rank(monkeypatch, above: bool):
    x, instances = viewed(8, 4, 5, 0.5, width=24)
    x *= torch.logspace(0, -2, 24)  # weak directions count in the rank as well
    labelled = gm.manifold_geometry(x, instances, mode="joint", directions=30)
    share = labelled.samples.a.mean().item() / 24
    assert glue_instances.SATURATED == 0.9
    assert 0.2 < share < 0.9
    assert torch.equal(instance_geometry(x, instances, mode="joint", directions=30).radius.value, labelled.radius)
    monkeypatch.setattr(glue_instances, "SATURATED", share * (0.999 if above else 1.001))
    if above:
        with pytest.warns(gm.GeomonitorWarning, match="fewer instances"):
            found = instance_geometry(x, instances, mode="joint", directions=30)
    else:
        found = instance_geometry(x, instances, mode="joint", directions=30)
    assert all(math.isnan(each.value) == math.isnan(each.standard_error) == above for each in found)
