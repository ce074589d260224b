"""Moments: any split gives the moments of the whole, at any scale and offset."""

from __future__ import annotations

import pytest
import torch

from geomonitor.markers.moments import Moments, add_points, empty_moments, merge_moments, moments_of


def data(offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 12, generator=generator, dtype=torch.float64) + offset
    return x, torch.randint(0, 4, (300,), generator=generator)


def scatter(x: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    return sum(torch.cov(x[groups == g].T, correction=0) * (groups == g).sum() for g in range(count))


def gram(moments: Moments) -> torch.Tensor:
    return moments.factor.T @ moments.factor


@pytest.mark.parametrize("batch", [1, 7, 64, 300])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_any_batch_split_gives_the_scatter_within_groups(batch, offset):
    x, groups = data(offset)
    moments = empty_moments(4, x)
    for i in range(0, 300, batch):
        moments = add_points(moments, x[i : i + batch], groups[i : i + batch])
        assert moments.factor.shape[0] <= 2 * 12  # bounded, however many points come
    torch.testing.assert_close(gram(moments), scatter(x, groups, 4), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments.means, torch.stack([x[groups == g].mean(0) for g in range(4)]))
    assert moments.counts.tolist() == [(groups == g).sum() for g in range(4)]


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_all_points_at_once_are_those_added_one_by_one(offset):
    x, groups = data(offset)
    one, other = moments_of(x, groups, 4), add_points(empty_moments(4, x), x, groups)
    torch.testing.assert_close(gram(one), gram(other), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.means, other.means)
    torch.testing.assert_close(one.spread, other.spread, rtol=1e-9, atol=0)
    assert torch.equal(one.counts, other.counts)


def test_differences_from_large_means_have_mean_zero():
    x, groups = data(1e6)
    moments = moments_of(x, groups, 4)
    means = torch.stack([moments.factor[groups == g].mean(0) for g in range(4)])
    assert means.abs().max() < 1e-13  # the rounding of the means alone is 1e-10


@pytest.mark.parametrize("cut", [0, 1, 150, 300])
def test_merged_parts_are_the_whole(cut):
    x, groups = data()
    parts = [add_points(empty_moments(4, x), *part) for part in ((x[:cut], groups[:cut]), (x[cut:], groups[cut:]))]
    torch.testing.assert_close(gram(merge_moments(parts)), scatter(x, groups, 4), rtol=1e-12, atol=1e-12)


def test_points_of_no_group_are_left_out():
    x, groups = data()
    groups[::3] = 9
    kept = groups < 4
    torch.testing.assert_close(
        gram(add_points(empty_moments(4, x), x, groups)), scatter(x[kept], groups[kept], 4), rtol=1e-12, atol=1e-12
    )
