"""Spectra within classes: NumPy class by class, known ranks, invariances, degenerate classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from geomonitor.markers.formulas import FEATURE_FORMULAS, PER_CLASS, feature_markers
from geomonitor.markers.layer_points import LayerPoints
from geomonitor.markers.table import MARKERS


def clouds() -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    scales = torch.logspace(0, -2, 16, dtype=torch.float64)
    x = torch.randn(90, 16, generator=stream, dtype=torch.float64) * scales
    return x + 10 * torch.randn(3, 16, generator=stream, dtype=torch.float64)[labels], labels


def per_class_spectrum_markers(x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return feature_markers(LayerPoints(x, labels), [name for name in FEATURE_FORMULAS if name.endswith(PER_CLASS)])


def test_against_numpy():
    x, labels = clouds()
    found = per_class_spectrum_markers(x, labels)
    ratios, ranks, entropies = [], [], []
    for c in range(3):
        l = np.linalg.eigvalsh(np.cov(x.numpy()[labels.numpy() == c].T, bias=True))  # noqa: E741
        ratios.append(np.trace(np.diag(l)) ** 2 / np.linalg.norm(l) ** 2)
        ranks.append((np.sqrt(l) >= 1e-3 * np.sqrt(l.max())).sum())
        entropies.append(np.prod((l / l.sum()) ** -(l / l.sum())))
    assert found["participation_ratio_per_class"].item() == pytest.approx(np.mean(ratios), rel=1e-9)
    assert found["numerical_rank_per_class"].item() == np.mean(ranks)
    assert found["effective_rank_per_class"].item() == pytest.approx(np.mean(entropies), rel=1e-9)


def test_classes_of_known_rank():
    line = torch.arange(4.0)[:, None] * torch.eye(5)[0]
    square = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) @ torch.eye(5)[1:3]
    found = per_class_spectrum_markers(torch.cat([line, square + 7]), torch.arange(8) // 4)
    assert found["participation_ratio_per_class"].item() == pytest.approx(1.5)
    assert found["numerical_rank_per_class"].item() == 1.5


def test_offset_of_a_class_does_not_matter():
    x, labels = clouds()
    moved = x + 1e3 * labels[:, None]
    one, other = per_class_spectrum_markers(x, labels), per_class_spectrum_markers(moved, labels)
    for name in ("participation_ratio", "numerical_rank", "effective_rank", "spectral_outliers"):
        assert other[f"{name}_per_class"].item() == pytest.approx(one[f"{name}_per_class"].item(), rel=1e-6)


def test_undefined_classes_are_left_out():
    x, labels = clouds()
    with_point = per_class_spectrum_markers(torch.cat([x, torch.ones(1, 16)]), torch.cat([labels, torch.tensor([3])]))
    name = "participation_ratio_per_class"
    assert with_point[name].item() == pytest.approx(per_class_spectrum_markers(x, labels)[name].item(), rel=1e-12)
    assert math.isnan(per_class_spectrum_markers(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]))[name])


def test_the_table_of_formulas_has_every_marker_of_features():
    x, labels = clouds()
    asked = [name for name, row in MARKERS.items() if row.state in ("spectrum", "classes", "points")]
    points = LayerPoints(x, labels, weight=x[:3], bias=torch.zeros(3), reference=x)
    found = feature_markers(points, asked)
    assert set(found) == set(asked)
    assert all(value.ndim == 0 and value.dtype == torch.float64 and math.isfinite(value) for value in found.values())


def test_nothing_is_computed_that_is_not_asked_for():
    x, labels = clouds()
    points = LayerPoints(x, labels, weight=x[:3], reference=x)
    assert list(feature_markers(points, ["dead_units", "capacity"])) == ["dead_units"]
    shared = {"spectrum", "class_spectra", "moments", "pairs"}
    assert not shared & set(vars(points))
    feature_markers(points, ["nc1", "feature_distance"])
    assert shared & set(vars(points)) == {"moments", "pairs"}
    feature_markers(points, ["participation_ratio"])  # of the Gram matrix alone, without a decomposition
    assert "gram" in vars(points.spectrum)
    assert not {"eigenvalues", "centered", "raw"} & set(vars(points.spectrum))
