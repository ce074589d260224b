"""Class structure: the simplex frame, NumPy's pinv on full matrices, invariances, degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from geomonitor import InputError, neural_collapse
from geomonitor.markers.collapse import classifier_disagreement

GENERATOR_SEED = 0


def clouds(noise: float, classes: int = 4, per_class: int = 30, width: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    centers = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(per_class)
    points = centers[labels] + noise * torch.randn(len(labels), width, generator=generator, dtype=torch.float64)
    return points, labels


def by_full_matrices(features: Tensor, labels: Tensor) -> tuple[float, float]:
    x, y = features.numpy(), labels.numpy()
    classes = np.unique(y)
    overall = x.mean(axis=0)
    within = sum(np.cov(x[y == c].T, bias=True) * (y == c).sum() for c in classes) / len(x)
    between = sum(np.outer(d, d) for d in (x[y == c].mean(axis=0) - overall for c in classes)) / len(classes)
    nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-3, hermitian=True)) / len(classes)
    return nc1, np.trace(within) / np.trace(between)


@pytest.mark.parametrize("noise", [1.0, 0.1, 1e-3])
def test_against_full_matrices(noise):
    features, labels = clouds(noise)
    assert list(map(float, neural_collapse(features, labels)[:2])) == pytest.approx(
        by_full_matrices(features, labels), rel=1e-9
    )


def test_unequal_class_sizes_against_full_matrices():
    features, labels = clouds(0.5)
    kept = torch.cat([torch.arange(10), torch.arange(30, 120)])
    features, labels = features[kept], labels[kept]
    assert list(map(float, neural_collapse(features, labels)[:2])) == pytest.approx(
        by_full_matrices(features, labels), rel=1e-9
    )


def test_simplex_frame_with_isotropic_noise_has_a_closed_form():
    # Means on a simplex of norm 1: S_b = I_{P-1} / (P - 1); noise +-sigma on each axis: S_w = sigma^2 I.
    classes, sigma = 5, 0.1
    frame = (torch.eye(classes) - 1 / classes) * math.sqrt(classes / (classes - 1))
    axes = torch.cat([torch.eye(classes), -torch.eye(classes)]) * sigma * math.sqrt(classes)
    features = (frame[:, None] + axes[None]).flatten(0, 1)
    nc = neural_collapse(features, torch.arange(classes).repeat_interleave(2 * classes))
    assert nc.nc1.item() == pytest.approx(sigma**2 * (classes - 1) ** 2 / classes, rel=1e-6)  # float32 frame
    assert nc.nc1_ratio.item() == pytest.approx(classes * sigma**2, rel=1e-6)


def test_the_cut_off_leaves_out_weak_directions_between_classes():
    # Third mean 1e-2 off the line of the others: its eigenvalue is below 1e-3 of the largest.
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1e-2]], dtype=torch.float64)
    noise = torch.tensor([[0.0, 0.1], [0.0, -0.1]], dtype=torch.float64)
    features = (means[:, None] + noise[None]).flatten(0, 1)
    assert neural_collapse(features, torch.tensor([0, 0, 1, 1, 2, 2])).nc1.item() == pytest.approx(0, abs=1e-4)


def test_full_collapse_is_zero():
    means = torch.eye(3)
    nc = neural_collapse(means.repeat(4, 1), torch.arange(3).repeat(4))
    assert [v.item() for v in nc[:2]] == pytest.approx([0, 0], abs=1e-25)


@pytest.mark.parametrize("change", ["scale", "offset", "rotation", "order", "labels"])
def test_invariances(change):
    features, labels = clouds(0.3)
    generator = torch.Generator().manual_seed(1)
    expected = [v.item() for v in neural_collapse(features, labels)[:5]]
    if change == "scale":
        features = features * 1e12
    elif change == "offset":
        features = features + 1e3
    elif change == "rotation":
        features = features @ torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    elif change == "order":
        order = torch.randperm(len(features), generator=generator)
        features, labels = features[order], labels[order]
    else:
        labels = 100 - 7 * labels
    # 1e3 costs three digits of sixteen, and nc1 squares what is left
    assert [v.item() for v in neural_collapse(features, labels)[:5]] == pytest.approx(expected, rel=1e-8)


def test_coinciding_means_are_undefined():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert all(math.isnan(v) for v in neural_collapse(features, torch.tensor([0, 0, 1, 1])))
    assert all(math.isnan(v) for v in neural_collapse(torch.full((4, 2), 0.1), torch.tensor([0, 0, 1, 1])))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4, dtype=torch.long), "at least 2 classes"),
        (torch.zeros(3, dtype=torch.long), "Q = 4"),
        (torch.zeros(4), "integers"),
    ],
)
def test_bad_labels_are_named(labels, message):
    with pytest.raises(InputError, match=message):
        neural_collapse(torch.randn(4, 2), labels)


def simplex(classes: int = 5) -> Tensor:
    """Class means of a simplex frame: unit length, cosines -1 / (P - 1)."""
    return (torch.eye(classes, dtype=torch.float64) - 1 / classes) * math.sqrt(classes / (classes - 1))


def test_normalised_variance_against_loops():
    features, labels = clouds(0.5)
    x, y = features.numpy(), labels.numpy()
    means = [x[y == c].mean(0) for c in range(4)]
    variances = [np.var(x[y == c], axis=0).sum() for c in range(4)]
    pairs = [(variances[c] + variances[d]) / 2 / np.linalg.norm(means[c] - means[d]) ** 2
             for c in range(4) for d in range(4) if c != d]  # fmt: skip
    assert neural_collapse(features, labels).cdnv.item() == pytest.approx(np.mean(pairs), rel=1e-9)


def test_normalised_variance_is_undefined_where_two_means_coincide():
    x = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [5, 6], [5, 4]])
    nc = neural_collapse(x, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert math.isnan(nc.cdnv)
    assert math.isfinite(nc.nc1_ratio)


def test_a_simplex_frame_is_equinorm_and_equiangular():
    nc = neural_collapse(3 * simplex().repeat(4, 1) + 7, torch.arange(5).repeat(4), weight=simplex() / 9)
    assert [nc.nc2_equinorm.item(), nc.nc2_equiangular.item(), nc.nc3.item()] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_frame_with_one_long_arm_by_hand():
    # Means +-1 on one axis and +-2 on the other: centred already; norms 1, 1, 2, 2.
    means = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]], dtype=torch.float64)
    nc = neural_collapse(means.repeat(2, 1), torch.arange(4).repeat(2))
    assert nc.nc2_equinorm.item() == pytest.approx(1 / 3)
    # <G, simplex> = tr G = 10 (columns of G sum to zero), |G| = sqrt(4 + 64), |simplex| = sqrt(3).
    assert nc.nc2_equiangular.item() == pytest.approx(math.sqrt(2 - 2 * 10 / math.sqrt(68 * 3)))


def test_nc3_against_numpy_and_opposite_weights():
    features, labels = clouds(0.5)
    weight = torch.randn(4, 20, generator=torch.Generator().manual_seed(2))
    m = np.stack([features.numpy()[labels.numpy() == c].mean(0) for c in range(4)])
    m, w = m - m.mean(0), weight.double().numpy()
    cosine = (m * w).sum() / np.sqrt((m**2).sum() * (w**2).sum())
    assert neural_collapse(features, labels, weight=weight).nc3.item() == pytest.approx(
        np.sqrt(2 - 2 * cosine), rel=1e-9
    )
    opposite = neural_collapse(features, labels, weight=-torch.from_numpy(m))
    assert opposite.nc3.item() == pytest.approx(2)
    assert math.isnan(neural_collapse(features, labels).nc3)
    with pytest.raises(InputError, match=r"\(4, 20\); got \(3, 20\)"):
        neural_collapse(features, labels, weight=weight[:3])


def test_nc4_against_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    features, labels = clouds(2.0)
    stream = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 20, generator=stream, dtype=torch.float64)
    bias = torch.randn(4, generator=stream, dtype=torch.float64)
    nearest = neighbors.NearestCentroid().fit(features.numpy(), labels.numpy()).predict(features.numpy())
    chosen = (features.numpy() @ weight.numpy().T + bias.numpy()).argmax(1)
    assert classifier_disagreement(features, labels, weight, bias).item() == (nearest != chosen).mean()
    means = torch.stack([features[labels == c].mean(0) for c in range(4)])
    by_distance = classifier_disagreement(features, labels, means, -means.square().sum(1) / 2)
    assert by_distance.item() == 0  # the linear classifier that is the nearest class mean


def test_nc4_does_not_mind_an_offset_that_the_bias_takes_back():
    features, labels = clouds(2.0)
    weight = torch.randn(4, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    one = classifier_disagreement(features, labels, weight)
    assert classifier_disagreement(features + 1e3, labels, weight, -1e3 * weight.sum(1)).item() == one.item()
