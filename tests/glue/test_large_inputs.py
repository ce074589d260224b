"""Bad and degenerate input with thousands of points: the right answer, or one that is said to be undefined."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.result import EffectiveGeometry
from tests.glue.clouds import gaussian_clouds

CLASSES, POINTS, DIMENSION, DIRECTIONS = 10, 250, 300, 8
# Other orders of sums and other active sets on the way; solutions agree to 1e-10.
SAME = 1e-8


def clouds() -> tuple[Tensor, Tensor]:
    return gaussian_clouds(CLASSES, POINTS, DIMENSION, 0.3)


def measured(features: Tensor, labels: Tensor) -> EffectiveGeometry:
    return manifold_geometry(features, labels, directions=DIRECTIONS)


def assert_solved(g: EffectiveGeometry) -> None:
    assert bool(g.converged)
    assert int(g.excluded) == 0
    assert float(g.max_kkt_residual) <= 1e-8
    assert bool(torch.stack(g.measures).isfinite().all())


def assert_same(g: EffectiveGeometry, expected: EffectiveGeometry) -> None:
    assert_solved(g)
    torch.testing.assert_close(torch.stack(g.measures), torch.stack(expected.measures), rtol=SAME, atol=SAME)


@pytest.fixture(scope="module")
def expected() -> EffectiveGeometry:
    return measured(*clouds())


class TestTheRightAnswer:
    features, labels = clouds()

    def test_more_points_than_dimensions(self, expected: EffectiveGeometry) -> None:
        assert len(self.features) > 8 * DIMENSION
        assert_solved(expected)

    def test_every_point_twice(self, expected: EffectiveGeometry) -> None:
        assert_same(measured(self.features.repeat(2, 1), self.labels.repeat(2)), expected)

    @pytest.mark.parametrize("scale", [1e-15, 1e15])
    def test_scale(self, expected: EffectiveGeometry, scale: float) -> None:
        assert_same(measured(self.features * scale, self.labels), expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        rounded = self.features.to(dtype)
        assert_same(measured(rounded, self.labels), measured(rounded.double(), self.labels))

    def test_singular_gram_matrix(self) -> None:
        """Rank 60 in 300 dimensions."""
        axes, _ = gaussian_clouds(60, 1, DIMENSION, 0.0)
        features, labels = gaussian_clouds(CLASSES, POINTS, 60, 0.3)
        assert_solved(measured(features @ axes, labels))

    def test_the_same_points_in_two_classes(self) -> None:
        features = torch.cat([self.features, self.features[self.labels == 0]])
        assert_solved(measured(features, torch.cat([self.labels, torch.full((POINTS,), CLASSES)])))

    def test_a_class_of_one_point_and_one_of_zeros(self) -> None:
        features = self.features * (self.labels != 2)[:, None]
        kept = (self.labels != 1) | (torch.arange(len(self.labels)) == POINTS)
        assert_solved(measured(features[kept], self.labels[kept]))


class TestSaid:
    features, labels = clouds()

    def test_rows_that_are_not_finite_are_counted_by_class(self) -> None:
        features = self.features.clone()
        features[::5, 7] = float("nan")
        with pytest.raises(InputError, match="50 of class 0, 50 of class 1"):
            measured(features, self.labels)

    def test_a_dead_layer(self) -> None:
        with pytest.warns(GeomonitorWarning, match="undefined") as caught:
            g = measured(self.features * 0, self.labels)
        assert len(caught) == 1
        assert bool(torch.stack(g.measures).isnan().all())

    def test_all_features_equal(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GeomonitorWarning)
            g = measured(torch.ones(len(self.labels), DIMENSION), self.labels)
        assert float(g.capacity) > 0
        found = torch.stack(g.measures)
        assert bool((found.isnan() | (found.abs() < 1e6)).all())
