"""Markers and metrics on hard inputs: a value in its range, NaN, or an ``InputError``, and the known invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geomonitor as gm
from geomonitor.glue.estimates import Measures
from tests.fuzzing.clouds import PROFILE, TENSORS, clouds, in_range, measured

SCALE = 2.0**-7
"""A power of two: multiplying by it rounds nothing, so that "unchanged" means every digit."""


def same(one: torch.Tensor, other: torch.Tensor, rel: float = 1e-12) -> bool:
    return bool(torch.allclose(one.double(), other.double(), rtol=rel, atol=0, equal_nan=True))


@PROFILE
@given(
    clouds(), st.integers(2, 10), st.sampled_from(["balanced", "random", "one-vs-rest"]),
    st.sampled_from(["joint", "pairwise"]),
)  # fmt: skip
def test_manifold_geometry(cloud, directions, dichotomies, mode):
    options = {"directions": directions, "dichotomies": dichotomies, "mode": mode}
    g = measured(gm.manifold_geometry, cloud.features, cloud.labels, **options)
    assert (g is not None) == cloud.finite
    if g is None:
        return
    assert isinstance(g, gm.EffectiveGeometry)
    assert in_range(g.utility, 0, math.inf)  # few directions, or few dimensions, can take it above 1
    assert in_range(g.dimension, 0, math.inf)
    assert in_range(g.capacity, 0, math.inf)
    assert in_range(g.radius, 0, math.inf)
    for name in Measures._fields:
        if "alignment" in name:
            assert in_range(getattr(g, name), 0 if "absolute" in name else -1, 1), name
        assert in_range(getattr(g.standard_error, name), 0, math.inf), name
    if mode == "joint" and all(math.isfinite(value) for value in g.measures[:4]) and g.dimension > 0:
        assert same(g.capacity, g.utility * (1 + g.radius**-2) / g.dimension, 1e-8)
    assert same(torch.stack(g.difference(g).value), 0 * torch.stack(g.measures))
    scaled = measured(gm.manifold_geometry, cloud.features.double() * SCALE, cloud.labels, **options)
    again = measured(gm.manifold_geometry, cloud.features.double(), cloud.labels, **options)
    assert all(map(same, scaled.measures, again.measures))


@PROFILE
@given(clouds(), st.integers(2, 10))
def test_a_snapshot(cloud, directions):
    shot = measured(gm.take_snapshot, cloud.features, cloud.labels, directions=directions)
    assert (shot is not None) == cloud.finite
    if isinstance(shot, gm.Snapshot):
        assert len(shot.class_dimensions) == len(cloud.labels.unique())
        assert shot.center_cosines is None or in_range(shot.center_cosines.nan_to_num().abs().max(), 0, 1)


@PROFILE
@given(TENSORS, TENSORS)
def test_wrong_tensors_are_refused(features, labels):
    good = features.ndim == 2 and features.numel() > 0 and not features.is_complex()
    labelled = good and labels.shape == features.shape[:1] and not (labels.is_floating_point() or labels.is_complex())
    for function in (gm.participation_ratio, gm.numerical_rank, gm.effective_rank, gm.stable_rank, gm.rankme):
        assert (measured(function, features) is not None) == good
    for function in (gm.manifold_geometry, gm.neural_collapse):
        result = measured(function, features, labels)
        assert labelled or result is None
        for metric in (gm.ManifoldGeometry(2, directions=2), gm.ClassStructure(2), gm.PointStatistics(2),
                       gm.LogitStatistics(2), gm.FeatureSpectrum()):  # fmt: skip
            measured(metric.update, features, labels)
            measured(metric.compute)


@PROFILE
@given(clouds(), st.floats(0, 1, exclude_min=True, exclude_max=True, allow_subnormal=False))
def test_spectrum(cloud, tolerance):
    x = cloud.features
    points, units = x.shape
    most = min(points - 1, units)
    ratio = measured(gm.participation_ratio, x)
    assert (ratio is not None) == cloud.finite
    if ratio is None:
        return
    assert in_range(ratio, 1, max(1, most))
    assert in_range(gm.effective_rank(x), 1, max(1, most))
    assert in_range(gm.stable_rank(x), 1, min(points, units))
    assert in_range(gm.rankme(x), 1, min(points, units), 1e-4)
    rank = float(gm.numerical_rank(x, tolerance=tolerance))
    assert rank == int(rank)
    assert 0 <= rank <= most
    assert math.isnan(ratio) == (rank == 0)
    assert rank <= float(gm.numerical_rank(x, tolerance=tolerance / 2))
    y = x.double()
    for function in (gm.participation_ratio, gm.numerical_rank, gm.effective_rank, gm.stable_rank, gm.rankme):
        assert same(function(y * SCALE), function(y))


@PROFILE
@given(clouds(), st.booleans())
def test_neural_collapse(cloud, with_weight):
    x, classes = cloud.features, cloud.labels.unique()
    weight = torch.ones(len(classes), x.shape[1]) if with_weight else None
    nc = measured(gm.neural_collapse, x, cloud.labels, weight=weight)
    assert (nc is not None) == cloud.finite
    if nc is None:
        return
    assert isinstance(nc, gm.NeuralCollapse)
    assert all(in_range(value, 0, math.inf) for value in nc)
    assert in_range(nc.nc2_equiangular, 0, 2)
    assert in_range(nc.nc3, 0, 2)
    assert with_weight or math.isnan(nc.nc3)
    y = x.double()
    assert all(map(same, gm.neural_collapse(y * SCALE, cloud.labels), gm.neural_collapse(y, cloud.labels)))


@PROFILE
@given(clouds(), clouds(), st.integers(1, 4), st.booleans())
def test_routing(cloud, other, per_token, given_indices):
    """A router may give anything: a routing in its ranges, or an error in words."""
    logits, experts = cloud.features, cloud.features.shape[1]
    scores = other.features[: len(logits)].abs() + 1
    given = (logits, scores[:, :per_token], scores.argsort(dim=1)[:, :per_token]) if given_indices else logits
    model = torch.nn.Module()
    model.forward = lambda x: model.router(x)
    model.router = torch.nn.Module()
    model.router.forward = lambda x: given
    metric = gm.RoutingStatistics(1, experts)

    def update():
        with gm.captured_routing(model, {"router": per_token}, items=1) as routing:
            model(logits)
        metric.update(routing)
        return True

    try:
        update()
    except gm.GeomonitorError:
        return
    values = measured(metric.compute)
    assert values is not None or not (cloud.finite and other.finite)
    for name, value in (values or {}).items():
        assert in_range(value, -1 if name == "pathway_consistency" else 0, math.inf if "error" in name else 1, 1e-9), (
            name
        )


METRICS = {
    "spectrum": lambda: gm.FeatureSpectrum(),
    "classes": lambda: gm.ClassStructure(4),
    "manifolds": lambda: gm.ManifoldGeometry(4, per_class=9, directions=4),
    "points": lambda: gm.PointStatistics(4, per_class=9),
    "instances": lambda: gm.InstanceStructure(4, per_class=9),
}
RANGES = {"active_fraction": (0, 1), "dead_units": (0, 1), "nc4": (0, 1), "drift": (0, 1), "angle": (0, math.pi)}


@pytest.mark.parametrize("state", METRICS)
@PROFILE
@given(clouds(classes=4), st.integers(0, 20))
def test_metrics_have_all_markers_and_do_not_mind_the_batches(state, cloud, cut):
    x, labels = cloud.features, cloud.labels.unique(return_inverse=True)[1]
    whole, parts = METRICS[state](), METRICS[state]()
    whole.update(x, labels)
    for part in (slice(0, cut), slice(cut, None)):
        parts.update(x[part], labels[part])
    values, split = measured(whole.compute), measured(parts.compute)
    assert (values is not None) == (split is not None) == cloud.finite
    if values is None:
        return
    markers = {name for name, row in gm.MARKERS.items() if row.state == state}
    assert markers <= set(values) | {"nc4", "drift"}
    for name, value in values.items():
        low, high = RANGES.get(name, (-1, math.inf) if "alignment" in name else (-math.inf, math.inf))
        assert in_range(value, low, high), name
        if state in ("manifolds", "points"):  # the same points in another order
            assert same(value, split[name], 1e-9), name


@PROFILE
@given(clouds(classes=4), st.integers(0, 20))
def test_factor_structure(cloud, cut):
    x, cells = cloud.features, cloud.labels.unique(return_inverse=True)[1]
    whole, parts = gm.FactorStructure((2, 2)), gm.FactorStructure((2, 2))
    whole.update(x, cells // 2, cells % 2)
    for part in (slice(0, cut), slice(cut, None)):
        parts.update(x[part], cells[part] // 2, cells[part] % 2)
    values, split = measured(whole.compute), measured(parts.compute)
    assert (values is not None) == (split is not None) == cloud.finite
    if values is None:
        return
    assert in_range(values["factor_orthogonality"], 0, 1)
    # Differences of cells that are all noise are divided by what noise does not explain: any number, but one.
    assert in_range(values["linear_factor_r2"], -math.inf, math.inf)
    assert in_range(values["linear_factor_score"], -math.inf, math.inf)


@PROFILE
@given(clouds(classes=2), st.integers(0, 20))
def test_gradient_coherence(cloud, cut):
    x, labels = cloud.features, cloud.labels.unique(return_inverse=True)[1]
    logits = x[:, :1] * torch.arange(4.0)
    whole, parts = (gm.GradientCoherence(4, per_class=9) for _ in range(2))
    whole.update(x, logits, labels)
    for part in (slice(0, cut), slice(cut, None)):
        parts.update(x[part], logits[part], labels[part])
    values, split = measured(whole.compute), measured(parts.compute)
    assert (values is not None) == (split is not None)
    if values is None:
        assert not cloud.finite or not logits.isfinite().all()
        return
    assert in_range(values["coherence"], -1, 1)
    assert in_range(values["coherence_standard_error"], 0, math.inf)
    assert same(values["coherence"], split["coherence"], 1e-9)


@PROFILE
@given(clouds(classes=2), st.integers(0, 20))
def test_logit_statistics(cloud, cut):
    x, labels = cloud.features, cloud.labels.unique(return_inverse=True)[1]
    metric = gm.LogitStatistics(int(labels.max()) + 1)
    if measured(lambda: metric.update(x, labels) or True) is None:
        assert x.shape[1] <= labels.max()
        return
    values = measured(metric.compute)
    assert (values is not None) == cloud.finite
    if values is None:
        return
    assert set(values) == {name for name, row in gm.MARKERS.items() if row.state == "logits"}
    for name, value in values.items():
        if name in ("energy", "margin"):
            assert math.isfinite(value)
        else:
            assert in_range(value, 0, math.log(x.shape[1]) if name == "entropy" else 1, 1e-6), name
