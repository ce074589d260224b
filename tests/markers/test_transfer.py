"""Accuracies on new classes: against scikit-learn, exact theory, chance, invariances and degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from geomonitor.markers.transfer import (
    EPISODES,
    few_shot_is_right,
    neighbors_are_right,
    places,
    ridge_is_right,
    share,
)

FUNCTIONS = [ridge_is_right, few_shot_is_right, neighbors_are_right]


def cloud(units: int, classes: int, per_class: int, *, spread: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    centers = torch.randn(classes, units, generator=generator)
    noise = torch.randn(len(labels), units, generator=generator)
    return (centers[labels] + spread * noise).double(), labels


@pytest.mark.parametrize(
    ("units", "classes", "per_class", "spread"), [(20, 6, 40, 3.0), (300, 5, 30, 9.0), (8, 3, 17, 1.5)]
)
def test_ridge_equals_scikit_learn_on_the_same_folds(units, classes, per_class, spread):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = cloud(units, classes, per_class, spread=spread)
    fold, expected = places(labels).numpy() % 5, np.zeros(len(x))
    for number in range(5):
        fitted, tested = fold != number, fold == number
        scale = float((x[fitted] - x[fitted].mean(0)).square().sum() / fitted.sum())
        model = linear_model.RidgeClassifierCV(alphas=scale * np.logspace(-4, 2, 13))
        model.fit(x[fitted].numpy(), labels[fitted].numpy())
        expected[tested] = model.predict(x[tested].numpy()) == labels[tested].numpy()
    right = ridge_is_right(x, labels)
    assert right.tolist() == expected.tolist()
    assert 1.5 / classes < right.mean() < 0.99  # neither chance nor trivial


@pytest.mark.parametrize(("units", "per_class"), [(10, 30), (40, 12)])
def test_neighbors_equal_scikit_learn_without_the_point_itself(units, per_class):
    neighbors = pytest.importorskip("sklearn.neighbors")
    x, labels = cloud(units, 4, per_class, spread=1.5)
    votes, rows, known = min(20, per_class - 1), x.numpy(), labels.numpy()
    expected = []
    for q in range(len(x)):
        others = np.arange(len(x)) != q
        model = neighbors.KNeighborsClassifier(
            votes, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
        ).fit(rows[others], known[others])
        expected.append(float(model.predict(rows[q : q + 1])[0] == known[q]))
    assert neighbors_are_right(x, labels).tolist() == expected


@pytest.mark.parametrize("spread", [1.0, 2.5])
def test_few_shot_equals_the_exact_theory_of_a_pair(spread):
    """Two classes with known covariance: Phi(mean / sd) of the difference of the distances to both centroids."""
    units, shots = 12, 5
    generator = torch.Generator().manual_seed(1)
    apart = torch.randn(units, generator=generator).double()
    x, labels = cloud(units, 2, 400, spread=spread)
    x[labels == 0] += apart - x[labels == 0].mean(0)
    x[labels == 1] -= x[labels == 1].mean(0)
    covariance = [torch.cov(x[labels == c].T) for c in (0, 1)]
    right = few_shot_is_right(x, labels)
    expected = []
    for a, b in ((0, 1), (1, 0)):
        own, other, difference = covariance[a], covariance[b], apart
        mean = difference @ difference / 2 + (other.trace() - own.trace()) / (2 * shots)
        variance = difference @ own @ difference + difference @ other @ difference / shots
        variance += ((own @ own).trace() + (own @ other).trace()) / shots
        variance += ((own @ own).trace() + (other @ other).trace()) / (2 * shots**2)
        expected.append(0.5 * math.erfc(-float(mean / variance.sqrt()) / math.sqrt(2)))
    assert float(right.mean()) == pytest.approx(np.mean(expected), abs=0.02)


@pytest.mark.parametrize(
    ("function", "chance"), [(ridge_is_right, 1 / 8), (few_shot_is_right, 1 / 5), (neighbors_are_right, 39 / 319)]
)
def test_noise_is_at_chance(function, chance):
    x, labels = cloud(30, 8, 40)
    right = function(torch.randn(x.shape, generator=torch.Generator().manual_seed(3)), labels)
    value, error = share(right)
    assert abs(value - chance) < 4 * max(error, 0.01)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_rotation_and_scale_change_nothing(function):
    x, labels = cloud(20, 5, 25)
    rotation = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)).double())[0]
    assert float(function(x, labels).mean()) == pytest.approx(
        float(function(7 * x @ rotation, labels).mean()), abs=1e-9
    )


@pytest.mark.parametrize("function", [ridge_is_right, few_shot_is_right])
def test_translation_changes_nothing(function):
    x, labels = cloud(20, 5, 25)
    assert float(function(x, labels).mean()) == pytest.approx(float(function(x + 3, labels).mean()), abs=1e-9)


@pytest.mark.parametrize(("function", "value"), [(ridge_is_right, math.nan), (few_shot_is_right, 1 / 5)])
def test_equal_features(function, value):
    labels = torch.arange(5).repeat_interleave(12)
    assert float(function(torch.ones(60, 4), labels).mean()) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_point_of_a_class_is_undefined(function):
    assert function(torch.randn(3, 4), torch.tensor([0, 1, 2])).isnan().all()


def test_the_error_of_a_change_is_paired():
    x, labels = cloud(20, 10, 50, spread=2.0)
    before, after = ridge_is_right(x, labels), ridge_is_right(x + 0.05 * torch.randn(x.shape), labels)
    assert share(after - before)[1] < 0.5 * math.hypot(share(before)[1], share(after)[1])
    assert share(before)[1] == pytest.approx(math.sqrt(float(before.mean() * (1 - before.mean())) / 500), rel=0.01)


def test_episodes_are_the_same_each_time():
    x, labels = cloud(20, 7, 25)
    assert torch.equal(few_shot_is_right(x, labels), few_shot_is_right(x, labels))
    assert len(few_shot_is_right(x, labels)) == EPISODES
