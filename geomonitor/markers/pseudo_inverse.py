"""Squared lengths of projections from Gram matrices, with the pseudo-inverse made safe."""

from __future__ import annotations

import torch
from torch import Tensor

# A row whose squared norm is below this part of the scale is rounding error: Gram entries carry an error of
# about 1e-16 of the largest one, and differences of a few of them ten times that.
ZERO_ROW = 1e-13
# Eigenvalues of the Jacobi-scaled Gram matrix below this part of the largest count as zero (1e-5 for singular
# values).
RANK_CUTOFF = 1e-10


def projected_square(gram: Tensor, products: Tensor, scale: Tensor) -> Tensor:
    """Squared length of the projection of ``t`` onto the span of rows ``R``: ``(R t)^T (R R^T)^+ (R t)``.

    Rows that are zero are left out, the others scaled to length one; a Cholesky factor then gives the answer,
    and an eigendecomposition where the rows are dependent.

    Args:
        gram: ``R R^T``, shape ``(..., P, P)``.
        products: ``R t``, shape ``(..., P)``.
        scale: squared length, shape ``(...)``, against which a row counts as zero.

    Returns:
        shape ``(...)``.

    >>> rows, t = torch.tensor([[2.0, 0.0], [2.0, 0.0]]).double(), torch.tensor([3.0, 4.0]).double()
    >>> projected_square(rows @ rows.T, rows @ t, torch.tensor(4.0))
    tensor(9., dtype=torch.float64)
    """
    squares = gram.diagonal(dim1=-2, dim2=-1)
    present = squares > ZERO_ROW * scale[..., None]
    inverse_norms = torch.where(present, squares.clamp(min=torch.finfo(gram.dtype).tiny).rsqrt(), 0.0)
    scaled = gram * inverse_norms[..., :, None] * inverse_norms[..., None, :]
    scaled.diagonal(dim1=-2, dim2=-1).copy_(torch.ones_like(squares))
    right = (products * inverse_norms)[..., None]
    factor, failed = torch.linalg.cholesky_ex(scaled)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square().amin(dim=-1)
    singular = (failed > 0) | ~(pivots > RANK_CUTOFF)
    solved = torch.linalg.solve_triangular(factor, right, upper=False)
    result: Tensor = solved.square().sum(dim=(-2, -1))
    if bool(singular.any()):
        result[singular] = _projected_square_by_eigenvalues(scaled[singular], right[singular])
    return result


def _projected_square_by_eigenvalues(gram: Tensor, right: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    kept = values > RANK_CUTOFF * values[..., -1:]
    coordinates = (vectors.mT @ right)[..., 0]
    return torch.where(kept, coordinates.square() / torch.where(kept, values, 1.0), 0.0).sum(dim=-1)
