"""The span of the points, without what rounding has added to it: features of low rank in as many dimensions as they have.

Rounding fills the null space of features of low rank with noise, and large dual weights fit it. Directions of the
feature space in which the points are no larger than their rounding are left out; then the measures no longer depend on
it, and nothing has the size of the layer. All is done from the Gram matrix ``K = U U^T`` and ``h = U t``: with
``K = L L^T`` (pivoted Cholesky) and the eigenvectors ``W`` of ``L^T L``, points have the coordinates ``L W``.

Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), 10.3: pivoted Cholesky, its rank; Seginer, Comb.
Probab. Comput. 9 (2000): a random matrix is about as large as its longest row and its longest column.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf  # type: ignore[import-untyped]
from torch import Tensor

from geomonitor.glue.points import Points

# Errors of an entry as a part of it. A layer sums in float32 at least, over many units, and its sums differ by several
# units in the last place from one batch size to another; half precision is rounded once, at the end.
ROUNDINGS = {
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
    torch.float16: torch.finfo(torch.float16).eps,
    torch.float32: 16 * torch.finfo(torch.float32).eps,
    torch.float64: 8 * torch.finfo(torch.float64).eps,
}
# A Gram matrix of unit points shows no smaller squared distance than this.
LEAST_PIVOT = 1e-13
# Pivots are at most some hundred times the smallest squared singular value: above, all directions are kept.
PIVOT_MARGIN = 100
# What the directions see of the points outside the span must be this small in float64.
SAME_PRODUCTS = 1e-12


def rounding_of(features: Tensor) -> float:
    """Error of an entry as a part of it: by the coarsest dtype that holds all values as they are.

    >>> rounding_of(torch.tensor([[1.0, 0.5]])) == rounding_of(torch.tensor([[1.0, 0.5]]).bfloat16())
    True
    """
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if features.dtype == dtype or (_holds(dtype, features[0]) and _holds(dtype, features)):  # one row is cheap
            return ROUNDINGS[dtype]
    return ROUNDINGS[torch.float64]


def in_span(points: Points, directions: Tensor, rounding: float) -> tuple[Points, Tensor]:
    """Points and directions in coordinates of the span; the same ones if the points span all dimensions.

    Args:
        points: ``Q`` points in ``N`` dimensions.
        directions: ``(T, N)``.
        rounding: error of an entry of the features as a part of it.
    """
    units = points.units
    size, dimension = units.shape
    longest = float(torch.linalg.vector_norm(units, dim=0).amax())
    least = (rounding * (1 + longest)) ** 2
    gram = units @ units.T if size <= dimension else units.T @ units
    tolerance = max(least, LEAST_PIVOT)
    packed, pivots, rank, _ = dpstrf(gram.cpu().numpy(), lower=1, tol=tolerance)
    smallest = packed[rank - 1, rank - 1] ** 2
    if rank == len(gram) and smallest > PIVOT_MARGIN * least:
        return points, directions
    factor = np.empty((len(gram), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    values, vectors = np.linalg.eigh(factor.T @ factor)
    kept = values > tolerance
    basis = torch.from_numpy(factor @ vectors[:, kept]).to(units)
    squares = torch.from_numpy(values[kept]).to(units)
    if size <= dimension:
        coordinates = basis
        products = directions @ units.T
        moved = (products @ basis) / squares
        if rounding < ROUNDINGS[torch.float32]:
            left = (moved @ basis.T - products).square().mean(dim=0).sqrt().amax()
            if not bool(left <= SAME_PRODUCTS):
                return points, directions
    else:
        axes = basis / squares.sqrt()
        coordinates, moved = units @ axes, directions @ axes
    return points.with_units(coordinates), moved


def _holds(dtype: torch.dtype, values: Tensor) -> bool:
    return bool((values.to(dtype) == values).all())
