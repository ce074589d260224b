"""What a monitor measures is well posed: noise of rounding moves no measure, or the measures are NaN with a reason."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import nnls  # type: ignore[import-untyped]
from torch import Tensor

from geomonitor.errors import GeomonitorWarning
from geomonitor.glue.draws import draw_directions
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.nnls import solve as solve_module
from geomonitor.glue.nnls.alternating_directions import guess
from geomonitor.glue.nnls.solve import FeatureSpace, solve
from geomonitor.glue.options import GeometryOptions
from geomonitor.glue.points import prepare_points
from geomonitor.glue.result import EffectiveGeometry
from geomonitor.glue.span import ROUNDINGS, in_span, rounding_of
from tests.glue.clouds import gaussian_clouds, relu_network
from tests.glue.test_anchors import unit_problem

RIDGE = GeometryOptions().ridge
FLOAT32 = ROUNDINGS[torch.float32]
MEASURES = ("capacity", "dimension", "radius", "utility")


def low_rank(rank: int, units: int, classes: int = 6, points: int = 25) -> tuple[Tensor, Tensor]:
    features, labels = gaussian_clouds(classes, points, rank, 0.3)
    axes = torch.randn(rank, units, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return features @ axes, labels


def dead(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return features * (torch.arange(features.shape[1]) % 3 > 0), labels


KINDS = {
    "trained": lambda: relu_network(6, 25, 64, 100),
    "trained, 4 classes": lambda: relu_network(4, 25, 96, 60),
    "untrained": lambda: relu_network(6, 25, 64, 0),
    "untrained, 10 classes": lambda: relu_network(10, 15, 96, 0),
    "collapsed": lambda: gaussian_clouds(6, 25, 64, 1e-3),
    "collapsed further": lambda: gaussian_clouds(5, 25, 96, 1e-4),
    "rank 2 of 64": lambda: low_rank(2, 64),
    "rank 2 of 128": lambda: low_rank(2, 128),
    "rank 5 of 64": lambda: low_rank(5, 64),
    "rank 5 of 128": lambda: low_rank(5, 128),
    "rank 3, 10 classes": lambda: low_rank(3, 96, 10, 15),
    "rank 2, then ReLU": lambda: (low_rank(2, 64)[0].relu(), low_rank(2, 64)[1]),
    "rank 3, then ReLU": lambda: (low_rank(3, 64)[0].relu(), low_rank(3, 64)[1]),
    "dead units": lambda: dead(*relu_network(6, 25, 96, 100)),
    "dead units of rank 5": lambda: dead(*low_rank(5, 96)),
}


def measured(features: Tensor, labels: Tensor, ridge: float = RIDGE) -> EffectiveGeometry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeomonitorWarning)  # a radius without centres
        return manifold_geometry(features, labels, ridge=ridge)


def most_moved(result: EffectiveGeometry, base: EffectiveGeometry) -> float:
    """Standard errors; a measure that is NaN makes no claim."""
    changes = [
        float((getattr(result, name) - getattr(base, name)).abs() / getattr(base.standard_error, name))
        for name in MEASURES
        if float(getattr(result, name)) != float(getattr(base, name))
    ]
    return max((change for change in changes if not math.isnan(change)), default=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_moves_no_measure(kind: str) -> None:
    features, labels = KINDS[kind]()
    features = features.double()
    base = measured(features, labels)
    stream = torch.Generator().manual_seed(2)
    noise = torch.randn(features.shape, generator=stream, dtype=torch.float64)
    by_entry = measured(features * (1 + 1e-7 * noise), labels)
    added = measured(features + 1e-7 * features.square().mean().sqrt() * noise, labels)
    half = measured(features.bfloat16(), labels)
    assert most_moved(by_entry, base) < 0.1
    assert most_moved(added, base) < 0.1
    assert most_moved(half, base) < 1
    assert max(int(g.excluded) for g in (base, by_entry, added, half)) <= 2
    assert bool(by_entry.capacity.isfinite())


@pytest.mark.parametrize("rank", [2, 3])
def test_what_half_precision_hides_is_undefined(rank: int) -> None:
    features, labels = low_rank(rank, 64)
    features = features.relu()
    with pytest.warns(GeomonitorWarning, match="as small as the rounding of their dtype decide them"):
        g = manifold_geometry(features.bfloat16(), labels, ridge=RIDGE)
    assert bool(torch.stack(g.measures).isnan().all())
    assert bool(torch.stack(g.standard_error).isnan().all())
    assert bool(measured(features.float(), labels).capacity.isfinite())
    assert bool(measured(features.bfloat16(), labels, ridge=0.0).capacity.isfinite())  # the definition has no such rule


@pytest.mark.parametrize("kind", ["trained", "trained, 4 classes", "untrained", "untrained, 10 classes"])
def test_the_default_ridge_moves_well_posed_measures_little(kind: str) -> None:
    assert most_moved(measured(*KINDS[kind]()), measured(*KINDS[kind](), ridge=0.0)) < 0.1


@pytest.mark.parametrize("rank", [2, 3])
def test_the_utility_is_exactly_one_if_the_axes_take_up_every_direction(rank: int) -> None:
    g = measured(*low_rank(rank, 64, 8, 20))
    assert float(g.utility) == 1
    assert float(g.standard_error.utility) == 0
    assert bool(g.radius.isnan())


class TestSpan:
    @pytest.mark.parametrize(("points", "units"), [(60, 200), (60, 20)])
    @pytest.mark.parametrize("rank", [1, 4])
    def test_rank_products_and_distances_are_those_of_the_features(self, points: int, units: int, rank: int) -> None:
        stream = torch.Generator().manual_seed(0)
        exact = (
            torch.randn(points, rank, generator=stream).double() @ torch.randn(rank, units, generator=stream).double()
        )
        given = prepare_points(exact.float(), torch.arange(points) % 3)
        t = draw_directions(30, units, seed=0)
        inside, moved = in_span(given, t, FLOAT32)
        assert inside.units.shape[1] == np.linalg.matrix_rank(exact.numpy()) == rank
        expected = prepare_points(exact, torch.arange(points) % 3).units
        torch.testing.assert_close(inside.units @ moved.T, expected @ t.T, rtol=0, atol=1e-5)
        torch.testing.assert_close(inside.units @ inside.units.T, expected @ expected.T, rtol=0, atol=1e-6)
        assert torch.equal(inside.norms, given.norms)

    @pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
    def test_points_of_full_rank_stay_as_they_are(self, shape: tuple[int, int]) -> None:
        points = prepare_points(
            torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.arange(shape[0]) % 2
        )
        t = draw_directions(5, shape[1], seed=0)
        inside, moved = in_span(points, t, FLOAT32)
        assert inside is points
        assert moved is t

    def test_small_signal_in_float64_is_kept(self) -> None:
        """1e-9 of the features: below what the Gram matrix shows, above the rounding of float64."""
        features = torch.ones(6, 40, dtype=torch.float64)
        features[:, 1] += 1e-9 * torch.arange(6)
        points = prepare_points(features, torch.arange(6) % 2)
        assert in_span(points, draw_directions(5, 40, seed=0), ROUNDINGS[torch.float64])[0] is points

    @pytest.mark.parametrize("scale", [1e-6, 1e6])
    def test_scale_and_rotation_do_not_matter(self, scale: float) -> None:
        features, labels = low_rank(4, 32)
        rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3)).double()).Q
        t = draw_directions(40, 32, seed=0)
        one = manifold_geometry(features, labels, directions=t, ridge=RIDGE)
        other = manifold_geometry(scale * features @ rotation, labels, directions=t @ rotation, ridge=RIDGE)
        for name in MEASURES:
            assert float(getattr(other, name)) == pytest.approx(float(getattr(one, name)), rel=1e-6)

    def test_zero_features_and_one_direction(self) -> None:
        points = prepare_points(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]))
        assert in_span(points, draw_directions(2, 3, seed=0), FLOAT32)[0] is points
        line = prepare_points(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]), torch.tensor([0, 1]))
        assert in_span(line, draw_directions(2, 3, seed=0), FLOAT32)[0].units.shape == (2, 1)

    def test_rounding_is_that_of_the_values(self) -> None:
        x = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            assert rounding_of(x.to(dtype).double()) == rounding_of(x.to(dtype)) == ROUNDINGS[dtype]


class TestGuess:
    def test_columns_are_those_of_nnls(self) -> None:
        problem, units, targets = unit_problem(*gaussian_clouds(4, 20, 30, 3.0), 6)
        problem = problem._replace(ridge=1e-3)
        found = guess(problem)
        for row, (y, t) in enumerate(zip(problem.signs, targets, strict=True)):
            signed = np.concatenate(((units * y[:, None]).numpy().T, 1e-3**0.5 * np.eye(len(units))))
            expected, _ = nnls(signed, np.concatenate((t.numpy(), np.zeros(len(units)))))
            wrong = set(np.flatnonzero(expected).tolist()) ^ set(found[row][found[row] >= 0].tolist())
            assert len(wrong) <= 2

    @pytest.mark.parametrize("compiled", [True, False])
    @pytest.mark.parametrize("ridge", [1e-4, 1e-2])
    def test_from_a_guess_the_same_weights_are_found(
        self, compiled: bool, ridge: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problem, units, targets = unit_problem(*gaussian_clouds(4, 20, 30, 3.0), 10)
        problem = problem._replace(ridge=ridge)
        space = FeatureSpace(lambda group: units, lambda row: targets[row])
        if not compiled:
            monkeypatch.setattr(solve_module, "suits", lambda problem: False)
        monkeypatch.setattr(solve_module, "ROUNDS_BEFORE_GUESS", 1)
        guessed = []
        monkeypatch.setattr(solve_module, "guess", lambda part: guessed.append(part) or guess(part))
        found = solve(problem, space).sets.dense(len(units))
        assert len(guessed) == 1
        for row, (y, t) in enumerate(zip(problem.signs, targets, strict=True)):
            signed = np.concatenate(((units * y[:, None]).numpy().T, ridge**0.5 * np.eye(len(units))))
            expected, _ = nnls(signed, np.concatenate((t.numpy(), np.zeros(len(units)))))
            np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-9)
