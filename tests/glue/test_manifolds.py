"""The effective geometry against its literal definition, against known values, and on bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import nnls  # type: ignore[import-untyped]
from torch import Tensor

from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.glue.draws import draw_dichotomies, draw_directions, draw_pairs
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.nnls import solve as solve_module
from geomonitor.glue.result import EffectiveGeometry
from tests.glue.clouds import gaussian_clouds, relu_network, spheres
from tests.glue.nnls_reference import MEASURES, reference_geometry

# What the project promises for every measure.
RELATIVE = 1e-8
# Invariances change the order of sums only, but weights of nearly dependent points feel rounding.
INVARIANT = 1e-9


def duplicated() -> tuple[Tensor, Tensor]:
    features, labels = gaussian_clouds(4, 20, 64, 1.0)
    return torch.cat([features, features[::3], features[::3]]), torch.cat([labels, labels[::3], labels[::3]])


def unequal() -> tuple[Tensor, Tensor]:
    features, labels = gaussian_clouds(4, 40, 64, 1.0)
    kept = torch.arange(len(labels)) % 40 < torch.tensor([40, 3, 17, 1])[labels]
    return features[kept], labels[kept]


def with_zero_class() -> tuple[Tensor, Tensor]:
    features, labels = gaussian_clouds(4, 20, 64, 1.0)
    return features * (labels != 2)[:, None], labels


def collapsed_simplex(noise: float) -> tuple[Tensor, Tensor]:
    """Neural collapse: class means that sum to zero, and a little noise."""
    means, _ = gaussian_clouds(6, 1, 128, 0.0)
    means = means - means.mean(dim=0)
    noises, labels = gaussian_clouds(6, 30, 128, 1.0, seed=1)
    return means[labels] / means.norm(dim=1).mean() + noise * noises, labels


CASES = {
    "gaussian clouds": lambda: gaussian_clouds(6, 20, 64, 1.0),
    "untrained network": lambda: relu_network(6, 30, 128, 0),
    "trained network": lambda: relu_network(6, 30, 128, 150),
    "nearly collapsed": lambda: gaussian_clouds(6, 30, 128, 1e-3),
    "nearly collapsed simplex": lambda: collapsed_simplex(1e-3),
    "more points than dimensions": lambda: gaussian_clouds(3, 100, 40, 0.3),
    "unequal classes": unequal,
    "a zero class": with_zero_class,
    "duplicated points": duplicated,
}


def assert_matches_reference(
    features: Tensor, labels: Tensor, kind: str, *, samples: int = 40, scale: float = 1.0
) -> None:
    classes = len(labels.unique())
    result = manifold_geometry(features * scale, labels, directions=samples, dichotomies=kind, seed=1)
    directions = draw_directions(samples, features.shape[1], seed=1)
    dichotomies = draw_dichotomies(samples, classes, kind, seed=1)
    expected = reference_geometry(features, labels, directions, dichotomies)
    found = {name: float(getattr(result, name)) for name in MEASURES}
    assert found == pytest.approx(expected, rel=RELATIVE, abs=0, nan_ok=False)
    assert bool(result.converged)
    assert float(result.max_kkt_residual) < RELATIVE


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_literal_definition(case: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled:
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(solve_module, "suits", lambda problem: False)
    assert_matches_reference(*CASES[case](), "balanced")


@pytest.mark.parametrize("kind", ["random", "one-vs-rest"])
def test_agrees_for_other_ensembles(kind: str) -> None:
    assert_matches_reference(*gaussian_clouds(5, 20, 64, 1.0), kind)


@pytest.mark.parametrize("scale", [1e-15, 1e15, 1e-150, 1e150])
def test_scale_is_divided_out_first(scale: float) -> None:
    assert_matches_reference(*gaussian_clouds(4, 10, 32, 0.5), "balanced", samples=20, scale=scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_input_is_computed_in_float64(dtype: torch.dtype) -> None:
    features, labels = gaussian_clouds(4, 10, 32, 0.5)
    assert_matches_reference(features.to(dtype), labels, "balanced", samples=20)


def values(result: EffectiveGeometry) -> Tensor:
    return torch.stack(result.measures)


def assert_unchanged(result: EffectiveGeometry, expected: EffectiveGeometry) -> None:
    torch.testing.assert_close(values(result), values(expected), rtol=INVARIANT, atol=INVARIANT)


class TestInvariances:
    features, labels = relu_network(5, 20, 48, 60)
    features = features.double()
    directions = draw_directions(50, 48, seed=3)
    expected = manifold_geometry(features, labels, directions=directions)

    def test_rotation(self) -> None:
        rotation, _ = torch.linalg.qr(gaussian_clouds(48, 1, 48, 0.0)[0])
        turned = manifold_geometry(self.features @ rotation, self.labels, directions=self.directions @ rotation)
        assert_unchanged(turned, self.expected)

    def test_zero_padding(self) -> None:
        padding = torch.nn.functional.pad
        wide = torch.cat([self.directions, draw_directions(50, 10, seed=4)], dim=1)
        assert_unchanged(
            manifold_geometry(padding(self.features, (0, 10)), self.labels, directions=wide), self.expected
        )

    def test_scaling(self) -> None:
        assert_unchanged(
            manifold_geometry(self.features * 0.37, self.labels, directions=self.directions), self.expected
        )

    def test_order_of_points(self) -> None:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))
        shuffled = manifold_geometry(self.features[order], self.labels[order], directions=self.directions)
        assert_unchanged(shuffled, self.expected)

    def test_class_names(self) -> None:
        renamed = manifold_geometry(self.features, self.labels * 7 - 3, directions=self.directions)
        assert_unchanged(renamed, self.expected)

    def test_signs_of_a_whole_dichotomy_and_its_direction(self) -> None:
        signs = draw_dichotomies(50, 5, "random", seed=0)
        one = manifold_geometry(self.features, self.labels, directions=self.directions, dichotomies=signs)
        other = manifold_geometry(self.features, self.labels, directions=-self.directions, dichotomies=-signs)
        assert_unchanged(one, other)

    def test_where_the_weights_are_not_unique(self) -> None:
        """Identical points in two classes: the smallest weights are the same for every order and rotation."""
        features = torch.cat([self.features, self.features[self.labels == 0]])
        labels = torch.cat([self.labels, torch.ones(20, dtype=torch.long)])
        expected = manifold_geometry(features, labels, directions=self.directions, dichotomies="random")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        rotation, _ = torch.linalg.qr(gaussian_clouds(48, 1, 48, 0.0)[0])
        turned = manifold_geometry(
            features[order] @ rotation,
            labels[order],
            directions=self.directions @ rotation,
            dichotomies="random",
        )
        # Anchors that nearly coincide make the pseudo-inverse feel rounding more than elsewhere.
        torch.testing.assert_close(values(turned), values(expected), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["balanced", "random", "one-vs-rest"])
def test_identity(kind: str) -> None:
    g = manifold_geometry(*relu_network(6, 30, 64, 40), dichotomies=kind)
    torch.testing.assert_close(g.capacity, g.utility * (1 + g.radius**-2) / g.dimension, rtol=RELATIVE, atol=0)


# Means of three seeds scatter by 2 %, which is half of the tolerance of 4 %; means of six by 1.3 %.
SEEDS = range(6)


class TestKnownValues:
    def test_points_in_general_position_have_capacity_two(self) -> None:
        features, labels = gaussian_clouds(8, 1, 200, 0.0)
        g = manifold_geometry(features, labels, directions=400, dichotomies="random")
        assert float(g.capacity) == pytest.approx(2.0, abs=0.12)

    @pytest.mark.parametrize(("axes", "expected"), [(2, 2.27), (4, 4.03), (6, 5.55), (8, 6.93), (10, 8.11)])
    def test_dimension_of_spheres(self, axes: int, expected: float) -> None:
        found = [manifold_geometry(*spheres(2, 200, 1000, axes=axes, seed=s), seed=s).dimension for s in SEEDS]
        assert float(torch.stack(found).mean()) == pytest.approx(expected, rel=0.04)

    @pytest.mark.parametrize(("radius", "expected"), [(0.8, 0.87), (1.0, 1.03), (1.4, 1.34), (2.0, 1.78)])
    def test_radius_of_spheres(self, radius: float, expected: float) -> None:
        found = [manifold_geometry(*spheres(2, 200, 1000, axes=4, radius=radius, seed=s), seed=s) for s in SEEDS]
        assert float(torch.stack([g.radius for g in found]).mean()) == pytest.approx(expected, rel=0.04)
        assert float(torch.stack([g.dimension for g in found]).mean()) == pytest.approx(4.03, rel=0.04)

    @pytest.mark.parametrize(("correlation", "expected"), [(0.0, 1.02), (0.4, 1.22), (0.8, 1.83)])
    def test_center_correlation_goes_into_the_radius(self, correlation: float, expected: float) -> None:
        found = [
            manifold_geometry(*spheres(2, 200, 1000, axes=4, center_correlation=correlation, seed=s), seed=s)
            for s in SEEDS
        ]
        assert float(torch.stack([g.radius for g in found]).mean()) == pytest.approx(expected, rel=0.06)
        assert float(torch.stack([g.dimension for g in found]).mean()) == pytest.approx(4.03, rel=0.04)

    @pytest.mark.parametrize("kind", ["balanced", "random", "one-vs-rest"])
    def test_capacity_of_sixteen_spheres(self, kind: str) -> None:
        g = manifold_geometry(*spheres(16, 60, 300, axes=4), dichotomies=kind)
        assert float(g.capacity) == pytest.approx(0.435, rel=0.05)

    def test_capacity_is_where_separating_planes_cease_to_exist(self) -> None:
        features, labels = spheres(16, 60, 300, axes=4)
        g = manifold_geometry(features, labels, dichotomies="random")
        assert 16 / critical_dimension(features.numpy(), labels.numpy()) == pytest.approx(float(g.capacity), rel=0.05)


def critical_dimension(points: np.ndarray, labels: np.ndarray, trials: int = 60) -> float:
    """Number of random dimensions in which half of the dichotomies have a separating plane through the
    origin.
    """
    random = np.random.default_rng(0)
    dimensions, separable = np.arange(30, 46, 3), []
    for dimension in dimensions:
        found = 0
        for _ in range(trials):
            signs = random.choice([-1.0, 1.0], size=labels.max() + 1)[labels]
            projected = points @ random.standard_normal((points.shape[1], dimension))
            signed = signs[:, None] * projected
            # Gordan: no plane separates if a convex combination of the signed points is zero.
            combination = np.vstack([signed.T, np.ones(len(labels))])
            _, distance = nnls(combination, np.eye(dimension + 1)[-1])
            found += distance > 1e-9
        separable.append(found / trials)
    return float(np.interp(0.5, separable, dimensions))


class TestPairwise:
    features, labels = relu_network(4, 15, 40, 60)

    def test_every_pair_is_a_problem_of_its_own(self) -> None:
        g = manifold_geometry(self.features, self.labels, mode="pairwise", directions=60, seed=2)
        alone = []
        for pair in draw_pairs(4, None, seed=2):
            chosen = (self.labels[:, None] == pair).any(dim=1)
            alone.append(manifold_geometry(self.features[chosen], self.labels[chosen], directions=60, seed=2))
        expected = torch.stack([values(one) for one in alone]).mean(dim=0)
        torch.testing.assert_close(values(g), expected, rtol=INVARIANT, atol=INVARIANT)
        # Pairs share directions: the error is that of the mean influence, not of independent pairs.
        influence = torch.stack([one.samples.influence for one in alone]).mean(dim=0)
        error = (influence.square().sum(dim=0) / (60 * 59)).sqrt()
        torch.testing.assert_close(torch.stack(g.standard_error), error, rtol=1e-7, atol=1e-12)

    def test_a_sample_of_pairs_is_seeded(self) -> None:
        one = manifold_geometry(self.features, self.labels, mode="pairwise", pairs=3, directions=20)
        two = manifold_geometry(self.features, self.labels, mode="pairwise", pairs=3, directions=20)
        assert torch.equal(values(one), values(two))
        assert one.samples.a.shape == (3, 20)

    def test_unequal_classes_and_explicit_dichotomies(self) -> None:
        features, labels = unequal()
        signs = draw_dichotomies(30, 4, "random", seed=5)
        g = manifold_geometry(features, labels, mode="pairwise", directions=30, dichotomies=signs)
        chosen = (labels == 1) | (labels == 3)
        alone = manifold_geometry(features[chosen], labels[chosen], directions=30, dichotomies=signs[:, [1, 3]])
        torch.testing.assert_close(g.samples.b[4], alone.samples.b, rtol=INVARIANT, atol=INVARIANT)

    def test_chunks_do_not_change_the_result(self) -> None:
        whole = manifold_geometry(self.features, self.labels, mode="pairwise", directions=20)
        chunked = manifold_geometry(self.features, self.labels, mode="pairwise", directions=20, memory_bytes=1)
        assert_unchanged(chunked, whole)
        whole = manifold_geometry(self.features, self.labels, directions=20)
        assert_unchanged(manifold_geometry(self.features, self.labels, directions=20, memory_bytes=1), whole)


class TestBadInput:
    features, labels = gaussian_clouds(3, 4, 8, 1.0)

    @pytest.mark.parametrize(
        ("features", "labels", "message"),
        [
            (features, labels[:-1], "12"),
            (features[0], labels, "shape"),
            (features[None], labels, "shape"),
            (features, labels.double(), "integer"),
            (features, labels[:, None], "shape"),
            (features.long(), labels, "floating"),
            (features.numpy(), labels, "tensor"),
            (features, labels.numpy(), "tensor"),
            (features, labels * 0, "2 classes"),
            (features[:0], labels[:0], "2 classes"),
            (features[:, :0], labels, "dimension"),
        ],
    )
    def test_features_and_labels(self, features: Tensor, labels: Tensor, message: str) -> None:
        with pytest.raises(InputError, match=message):
            manifold_geometry(features, labels)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_names_the_classes_of_rows_that_are_not_finite(self, bad: float) -> None:
        features = self.features.clone()
        features[0, 1] = features[1, 0] = features[9, 3] = bad
        with pytest.raises(InputError, match="2 of class 0, 1 of class 2"):
            manifold_geometry(features, self.labels)

    @pytest.mark.parametrize(
        "options",
        [
            {"directions": 1},
            {"directions": 2.5},
            {"directions": torch.zeros(4, 9)},
            {"directions": torch.full((4, 8), float("nan"))},
            {"dichotomies": "all"},
            {"dichotomies": torch.ones(200, 2)},
            {"dichotomies": torch.zeros(200, 3)},
            {"mode": "both"},
            {"pairs": 2},
            {"mode": "pairwise", "pairs": 0},
            {"seed": -1},
            {"memory_bytes": 0},
        ],
    )
    def test_options(self, options: dict[str, object]) -> None:
        with pytest.raises(InputError):
            manifold_geometry(self.features, self.labels, **options)  # type: ignore[arg-type]


class TestDegenerateInput:
    def test_classes_of_one_point_are_points(self) -> None:
        g = manifold_geometry(*gaussian_clouds(5, 1, 30, 0.0), dichotomies="random")
        assert bool(values(g).isfinite().all())

    @pytest.mark.parametrize("mode", ["joint", "pairwise"])
    def test_a_dead_layer_is_undefined(self, mode: str) -> None:
        features, labels = gaussian_clouds(3, 4, 8, 1.0)
        with pytest.warns(GeomonitorWarning, match="undefined") as caught:
            g = manifold_geometry(features * 0, labels, mode=mode)  # type: ignore[arg-type]
        assert len(caught) == 1
        assert bool(values(g).isnan().all())

    def test_equal_features_have_a_capacity_and_no_radius(self) -> None:
        """All points are one point: with mixed signs ``v`` is orthogonal to it, so ``a = (z t)^2`` half of
        the time.
        """
        labels = torch.arange(4).repeat_interleave(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GeomonitorWarning)
            g = manifold_geometry(torch.ones(20, 16), labels, directions=400)
        assert float(g.capacity) == pytest.approx(4.0, rel=0.3)
        assert bool(values(g)[values(g).isfinite()].abs().lt(1e6).all())

    def test_a_zero_class_leaves_the_alignments_of_the_others(self) -> None:
        g = manifold_geometry(*with_zero_class())
        assert bool(values(g).isfinite().all())

    def test_a_pair_without_a_measure_is_left_out_and_said(self) -> None:
        with pytest.warns(GeomonitorWarning, match="3 of 6 pairs") as caught:
            g = manifold_geometry(*with_zero_class(), mode="pairwise")
        assert len(caught) == 1
        assert bool(values(g).isfinite().all())

    def test_saturated_and_singular(self) -> None:
        """More points than dimensions, and often the whole space in their cone: finite, converged, ``a <=
        |t|^2``.
        """
        g = manifold_geometry(*gaussian_clouds(10, 10, 12, 1.0), dichotomies="random", directions=30)
        assert bool(g.converged)
        assert bool(values(g).isfinite().all())

    def test_gradients_are_not_followed(self) -> None:
        features, labels = gaussian_clouds(3, 4, 8, 1.0)
        assert not manifold_geometry(features.requires_grad_(), labels, directions=5).capacity.requires_grad


class TestDraws:
    def test_directions_do_not_depend_on_the_classes_or_the_ensemble(self) -> None:
        features, labels = gaussian_clouds(6, 5, 20, 1.0)
        joint = manifold_geometry(features, labels, directions=30, seed=4)
        given = manifold_geometry(
            features,
            labels,
            directions=draw_directions(30, 20, seed=4),
            dichotomies=draw_dichotomies(30, 6, "balanced", seed=4),
        )
        assert torch.equal(joint.samples.a, given.samples.a)

    def test_balanced_dichotomies_of_odd_classes_vary_by_one(self) -> None:
        counts = (draw_dichotomies(400, 7, "balanced", seed=0) > 0).sum(dim=1)
        assert set(counts.tolist()) == {3, 4}
        assert 0.4 < float((counts == 3).double().mean()) < 0.6

    def test_one_vs_rest_is_uniform(self) -> None:
        positive = (draw_dichotomies(3000, 3, "one-vs-rest", seed=0) > 0).double()
        assert bool((positive.sum(dim=1) == 1).all())
        torch.testing.assert_close(positive.mean(dim=0), torch.full((3,), 1 / 3).double(), atol=0.03, rtol=0)

    def test_global_random_state_is_left_alone(self) -> None:
        before = torch.random.get_rng_state()
        manifold_geometry(*gaussian_clouds(3, 4, 8, 1.0), directions=5)
        assert torch.equal(before, torch.random.get_rng_state())


class TestFeaturesOfLowRank:
    """Many points in few dimensions: the dual is not unique, and active columns depend on one another."""

    def test_few_live_units_one_by_one_as_in_a_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        features, labels = gaussian_clouds(6, 30, 12, 1.0)
        features = torch.nn.functional.pad(features.relu(), (0, 116))  # 116 of 128 units are dead
        one_by_one = manifold_geometry(features, labels, directions=40)
        monkeypatch.setattr(solve_module, "SMALL", 0)
        batch = manifold_geometry(features, labels, directions=40)
        assert bool(one_by_one.converged)
        assert bool(batch.converged)
        torch.testing.assert_close(values(one_by_one), values(batch), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("rectified", [True, False])
    @pytest.mark.parametrize(
        ("points", "rank", "dimension", "classes"), [(80, 6, 16, 4), (60, 6, 32, 2), (120, 3, 8, 6)]
    )
    def test_every_sample_is_solved(self, points, rank, dimension, classes, rectified, dtype):
        generator = torch.Generator().manual_seed(1)
        drawn = [
            torch.randn(*shape, generator=generator) for shape in ((points, rank), (rank, dimension), (1, dimension))
        ]
        features = (drawn[0] @ drawn[1] + drawn[2]).to(dtype)
        features = features.relu() if rectified else features
        g = manifold_geometry(features, torch.arange(points) % classes, directions=40)
        assert bool(g.converged)
        assert 0 < g.dimension < min(rank + 1, dimension) if not rectified else g.dimension > 0

    def test_does_not_depend_on_the_order_of_points(self):
        generator = torch.Generator().manual_seed(2)
        features = torch.randn(80, 6, generator=generator, dtype=torch.float64) @ torch.randn(
            6, 16, generator=generator, dtype=torch.float64
        )
        labels, order = torch.arange(80) % 4, torch.randperm(80, generator=generator)
        one = manifold_geometry(features, labels, directions=40)
        other = manifold_geometry(features[order], labels[order], directions=40)
        # smallest weights are found to 1e-13 of their length, and their cosines divide by small axes
        for name in ("capacity", "dimension", "utility"):
            assert float(getattr(other, name)) == pytest.approx(float(getattr(one, name)), rel=1e-6)

    @pytest.mark.parametrize("shape", [(80, 6, 16, 4), (60, 6, 32, 2)])
    def test_rounding_to_float32_gives_the_answer_of_the_features_before_it(self, shape):
        """Rounded columns of low rank are accepted with a residual above 1e-8: here is what that costs."""
        points, rank, dimension, classes = shape
        generator = torch.Generator().manual_seed(3)
        drawn = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((points, rank), (rank, dimension))]
        features, labels = drawn[0] @ drawn[1], torch.arange(points) % classes
        exact = manifold_geometry(features, labels, directions=40)
        rounded = manifold_geometry(features.float(), labels, directions=40)
        assert float(exact.max_kkt_residual) < 1e-8
        # float32 moves a point by 6e-8 of its length, and a mean of anchors by a few times that
        for name in ("capacity", "dimension", "utility"):
            assert float(getattr(rounded, name)) == pytest.approx(float(getattr(exact, name)), rel=1e-6)
