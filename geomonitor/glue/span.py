"""The span of the points without what rounding adds to it: features of low rank in as many dimensions as they have.

Rounding fills the null space of features of low rank with noise, and large dual weights fit it. Directions of the
feature space in which no point is larger than its rounding are left out; then the measures do not depend on it, and
nothing has the size of the layer. All is done from a Gram matrix by pivoted Cholesky, which stops at the rank:
``U U^T = L L^T`` has the coordinates of the points in its rows.

Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), 10.3: pivoted Cholesky, its rank; Seginer, Comb.
Probab. Comput. 9 (2000): a random matrix is about as large as its longest row and its longest column.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf  # type: ignore[import-untyped]
from torch import Tensor

from geomonitor.glue.points import Points

# Errors of an entry as a part of it. A layer sums in float32 at least, over many units, and its sums differ by several
# units in the last place from one batch size to another; half precision is rounded once, at the end.
ROUNDINGS = MappingProxyType(
    {
        torch.bfloat16: torch.finfo(torch.bfloat16).eps,
        torch.float16: torch.finfo(torch.float16).eps,
        torch.float32: 16 * torch.finfo(torch.float32).eps,
        torch.float64: 8 * torch.finfo(torch.float64).eps,
    }
)
# Half precision: if directions between the rounding and this many times the rounding decide the measures, so do others
# below the rounding, which cannot be seen.
COARSER = 4
# A Gram matrix of unit points shows no smaller squared distance than this.
LEAST_PIVOT = 1e-13
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
    longest = float(torch.linalg.vector_norm(units, dim=0).amax())
    least = max((rounding * (1 + longest)) ** 2, LEAST_PIVOT)
    if len(units) > units.shape[1]:
        axes = _span(units.T @ units, least)
        return (points, directions) if axes is None else (points.with_units(units @ axes), directions @ axes)
    packed, pivots, rank, _ = dpstrf((units @ units.T).cpu().numpy(), lower=1, tol=least)
    if rank in (0, len(units)):  # 0: no point but zero
        return points, directions
    factor = torch.from_numpy(np.tril(packed)[:, :rank]).to(units)  # L, rows in the order of the pivots
    order = torch.from_numpy(pivots).to(units.device, torch.int64) - 1
    moved = torch.linalg.solve_triangular(factor[:rank], units[order[:rank]] @ directions.T, upper=False)
    if rounding < ROUNDINGS[torch.float32]:  # the Gram matrix cannot show that little
        different = factor @ moved - (units @ directions.T)[order]
        if not bool(different.abs().amax() <= SAME_PRODUCTS):
            return points, directions
    return points.with_units(torch.zeros_like(factor).index_copy_(0, order, factor)), moved.T.contiguous()


def _span(gram: Tensor, least: float) -> Tensor | None:
    """Orthonormal axes ``(N, r)`` of the columns of a Gram matrix of units; None if they are as many as the units."""
    packed, pivots, rank, _ = dpstrf(gram.cpu().numpy(), lower=1, tol=least)
    if rank in (0, len(gram)):
        return None
    factor = np.empty((len(gram), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    return torch.from_numpy(np.linalg.qr(factor)[0]).to(gram)


def _holds(dtype: torch.dtype, values: Tensor) -> bool:
    return bool((values.to(dtype) == values).all())
