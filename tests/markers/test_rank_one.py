"""One more row by the secular equation: LAPACK on the whole matrix is the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geomonitor.markers.rank_one import with_row

STREAM = 0


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(STREAM), dtype=torch.float64)


def by_both(matrix: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    _, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = with_row(values, right, row)
    expected = torch.linalg.svdvals(torch.cat([matrix, row[None]]))
    return found[: len(expected)], expected


CASES = {
    "square": (random(60, 60), random(60)),
    "more points": (random(80, 20), random(20)),
    "more units": (random(20, 80), random(80)),
    "long row": (random(20, 80), 1e6 * random(80)),
    "short row": (random(20, 80), 1e-9 * random(80)),
    "no row": (random(20, 30), torch.zeros(30, dtype=torch.float64)),
    "no matrix": (torch.zeros(5, 7, dtype=torch.float64), random(7)),
    "nothing": (torch.zeros(5, 7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)),
    "equal values": (3 * torch.eye(6, dtype=torch.float64), random(6)),
    "along a right vector": (torch.diag(torch.arange(6.0, 0, -1, dtype=torch.float64)), torch.eye(6).double()[2] * 4),
    "fourteen decades": (torch.diag(torch.logspace(0, -14, 15, dtype=torch.float64)), random(15)),
    "low rank": (random(50, 3) @ random(3, 40), random(40)),
    "tiny": (1e-150 * random(20, 10), 1e-150 * random(10)),
    "huge": (1e150 * random(20, 10), 1e150 * random(10)),
}


@pytest.mark.parametrize("case", CASES)
def test_against_lapack(case):
    found, expected = by_both(*CASES[case])
    # Both are exact up to the rounding of a decomposition, which is relative to the largest value.
    assert (found - expected).abs().max() <= 1e-14 * expected.max()


def test_values_interlace():
    matrix, row = CASES["square"]
    _, values, right = torch.linalg.svd(matrix)
    found = with_row(values, right, row)
    assert bool((found[:-1] >= values).all())
    assert bool((found[1:-1] <= values[:-1]).all())
