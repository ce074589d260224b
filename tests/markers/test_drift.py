"""Drift: CKA as the paper's HSIC with centring matrices, invariances, degenerate input; the largest drop by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from geomonitor import InputError
from geomonitor.markers.drift import drift, largest_drop, linear_cka


def pair(units: int, others: int, points: int = 40) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(points, units, generator=stream, dtype=torch.float64) + 3
    y = x @ torch.randn(units, others, generator=stream, dtype=torch.float64)
    return x, y + 2 * torch.randn(points, others, generator=stream, dtype=torch.float64)


def by_hsic(x: Tensor, y: Tensor) -> float:
    h = np.eye(len(x)) - np.ones((len(x), len(x))) / len(x)
    k, l = (h @ (z.numpy() @ z.numpy().T) @ h for z in (x, y))  # noqa: E741 - the letters of the paper
    return float(np.trace(k @ l) / math.sqrt(np.trace(k @ k) * np.trace(l @ l)))


@pytest.mark.parametrize(("units", "others"), [(5, 7), (100, 90), (5, 100)])
def test_against_hsic(units, others):
    x, y = pair(units, others)
    assert linear_cka(x, y).item() == pytest.approx(by_hsic(x, y), rel=1e-10)
    assert linear_cka(y, x).item() == pytest.approx(by_hsic(x, y), rel=1e-10)


def test_known_values():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert drift(x, x).item() == pytest.approx(0, abs=1e-15)
    # Gram of one axis against that of both: 4 / (sqrt(8) sqrt(4)).
    assert linear_cka(x, x[:, :1]).item() == pytest.approx(1 / math.sqrt(2))
    assert drift(x[:, :1], x[:, 1:]).item() == pytest.approx(1)  # orthogonal representations


@pytest.mark.parametrize("change", ["scale", "offset", "rotation", "order"])
def test_invariances(change):
    x, y = pair(12, 9)
    expected = linear_cka(x, y).item()
    stream = torch.Generator().manual_seed(1)
    if change == "scale":
        x = 1e-200 * x
    elif change == "offset":
        x = x + 1e3
    elif change == "rotation":
        x = x @ torch.linalg.qr(torch.randn(12, 12, generator=stream, dtype=torch.float64)).Q
    else:
        order = torch.randperm(40, generator=stream)
        x, y = x[order], y[order]
    assert linear_cka(x, y).item() == pytest.approx(expected, rel=1e-6)


def test_degenerate_input():
    assert math.isnan(drift(torch.full((5, 3), 0.1), torch.eye(5)))
    assert math.isnan(drift(torch.eye(5), torch.zeros(5, 2)))
    with pytest.raises(InputError, match="5 points and 4"):
        drift(torch.eye(5), torch.eye(4))


@pytest.mark.parametrize(
    ("values", "window", "drop"),
    [
        ([1, 2, 3], 2, 0),
        ([3, 5, 4, 4.5, 2], 2, 2.5),
        ([5, 4, 3, 2], 3, 2),
        ([5, math.nan, 4, 3], 2, 1),
        ([5, 1], 100, 4),
    ],
)
def test_largest_drop_by_hand(values, window, drop):
    assert largest_drop(values, window).item() == drop


def test_largest_drop_against_two_loops():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()
    expected = max(values[s] - values[t] for t in range(50) for s in range(max(0, t - 6), t + 1))
    assert largest_drop(values, 7).item() == pytest.approx(expected)


def test_a_drop_needs_two_measurements():
    assert math.isnan(largest_drop([1.0, math.nan], 2))
    with pytest.raises(InputError, match="at least 2"):
        largest_drop([1.0, 2.0], 1)
