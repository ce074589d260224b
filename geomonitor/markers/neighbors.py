r"""Intrinsic dimension from nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from geomonitor.markers.distances import pair_distances
from geomonitor.markers.inputs import feature_matrix

TRIMMED = 0.1
"""Share of the points with the largest ratio of distances that is not trusted (Facco et al. 2017): there the density
changes between the first and the second neighbour."""


def intrinsic_dimension(features: Tensor) -> Tensor:
    r"""TwoNN: the dimension in which the second neighbour is as far beyond the first as it is.

    With :math:`x_q = \log(r_{2,q} / r_{1,q})`, exponentially distributed with rate d, in ascending order and the top
    tenth trimmed (k of n are kept):

    .. math::
        d = k \Big/ \Bigl( \sum_{q \le k} x_q + (n - k)\, x_k \Bigr)

    Args:
        features: ``(Q, N)``. Of equal points one is kept.

    Returns:
        0-dim float64, positive; NaN with fewer than 3 different points, or if all ratios are 1.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    Source: Facco, d'Errico, Rodriguez, Laio 2017, which fits a line to the trimmed distribution. This is the maximum
    likelihood of the same trimmed distribution, in which a trimmed point counts as "at least x_k"; the plain
    ``k / sum x`` would read a third too high.

    >>> line = torch.rand(400, 1, generator=torch.Generator().manual_seed(0)) @ torch.ones(1, 5)
    >>> 0.85 < intrinsic_dimension(line).item() < 1.15
    True
    """
    x = feature_matrix(features)
    return intrinsic_dimension_of(pair_distances(x), len(x))


def intrinsic_dimension_of(pairs: Tensor, points: int) -> Tensor:
    """The same from the :func:`.distances.pair_distances` of that number of points."""
    undefined = pairs.new_tensor(torch.nan)
    square = pairs.new_full((points, points), torch.inf)
    first, second = torch.triu_indices(points, points, offset=1, device=pairs.device)
    square[first, second] = pairs
    repeated = (square == 0).any(dim=0)  # equal to an earlier point
    square[second, first] = pairs
    square = square[~repeated][:, ~repeated]
    count = len(square)
    if count < 3:
        return undefined
    nearest = square.topk(2, dim=1, largest=False).values
    logs = (nearest[:, 1] / nearest[:, 0]).log().sort().values
    kept = max(int(count * (1 - TRIMMED)), 1)
    total = logs[:kept].sum() + (count - kept) * logs[kept - 1]
    return torch.where(total > 0, kept / total, undefined)
