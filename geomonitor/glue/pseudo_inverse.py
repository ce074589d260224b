"""Squared lengths of projections from Gram matrices, with the pseudo-inverse made safe."""

from __future__ import annotations

import torch
from torch import Tensor

# A row whose squared norm is below this part of the scale is rounding error: Gram entries carry an error of about 1e-16
# of the largest one, and differences of a few of them ten times that.
ZERO_ROW = 1e-13
# Eigenvalues of the Jacobi-scaled Gram matrix below this part of the largest count as zero (1e-5 for singular values).
RANK_CUTOFF = 1e-10


def projected_square(gram: Tensor, products: Tensor, scale: Tensor) -> Tensor:
    """Squared length of the projection of ``t`` onto the span of rows ``R``: ``(R t)^T (R R^T)^+ (R t)``.

    Args:
        gram: ``R R^T``, shape ``(..., P, P)``.
        products: ``R t``, shape ``(..., P)``.
        scale: squared length, shape ``(...)``, against which a row counts as zero.

    Returns:
        shape ``(...)``.

    >>> rows, t = torch.tensor([[2.0, 0.0], [2.0, 0.0]]).double(), torch.tensor([3.0, 4.0]).double()
    >>> round(float(projected_square(rows @ rows.T, rows @ t, torch.tensor(4.0))), 12)
    9.0
    """
    return projection(gram, products, scale)[0]


def projection(gram: Tensor, products: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the coefficients ``x = (R R^T)^+ (R t)`` of the projection, shape ``(..., P)``.

    The squared length is ``2 x^T R t - x^T R R^T x``, in which errors of ``x`` count in second order only.
    """
    coefficients = _coefficients(gram, products, scale)
    x = coefficients[..., None]
    quadratic = (x.mT @ gram @ x)[..., 0, 0]
    return 2 * (coefficients * products).sum(dim=-1) - quadratic, coefficients


def _coefficients(gram: Tensor, products: Tensor, scale: Tensor) -> Tensor:
    """``(R R^T)^+ (R t)``, shape ``(..., P)``.

    Rows that are zero are left out, the others scaled to length one; a Cholesky factor then gives the answer, or an
    eigendecomposition if the rows are dependent.
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
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    solved: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    if bool(singular.any()):
        solved[singular] = _by_eigenvalues(scaled[singular], right[singular])
    return solved[..., 0] * inverse_norms


def _by_eigenvalues(gram: Tensor, right: Tensor) -> Tensor:
    finite = gram.isfinite().all(dim=-1).all(dim=-1)[..., None, None]  # LAPACK raises on NaN
    values, vectors = torch.linalg.eigh(torch.where(finite, gram, torch.eye(gram.shape[-1]).to(gram)))
    kept = values > RANK_CUTOFF * values[..., -1:]
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    solved: Tensor = vectors @ (inverse[..., None] * (vectors.mT @ right))
    return torch.where(finite, solved, torch.nan)
