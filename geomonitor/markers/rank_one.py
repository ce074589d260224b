r"""Singular values of a matrix with one more row, from its own SVD: no second decomposition.

Centred and raw features differ by one row, :math:`\sqrt Q` times the mean. With :math:`F = U S V^\top`, the squares of
the singular values of :math:`F` on top of a row :math:`m` are the eigenvalues of :math:`S^2 + z z^\top`,
:math:`z = V^\top m`, with one more dimension for the part of :math:`m` outside the span of :math:`V`. They are the
roots of the secular equation (Golub 1973), one between each two neighbours in :math:`S`.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALVINGS = 60
"""Bisection steps: the bracket shrinks by 2^60, below the rounding of a singular value."""


def with_row(singular_values: Tensor, right: Tensor, row: Tensor) -> Tensor:
    r"""Singular values of :math:`\begin{pmatrix} F \\ m \end{pmatrix}`.

    Each root is found by bisection on its offset from the nearer of the two singular values that enclose it, so that
    no digits cancel, and for all roots at once: ``k^2`` operations a step, no loop over roots.

    Args:
        singular_values: ``(k,)`` of ``F``, descending, float64.
        right: ``(k, N)`` right singular vectors of ``F``.
        row: ``(N,)`` the row ``m`` to add.

    Returns:
        ``(k + 1,)``, descending, float64.

    Source: Golub 1973, "Some modified matrix eigenvalue problems", section 5; the offsets are those of Gu and
    Eisenstat 1994.

    >>> with_row(torch.ones(1, dtype=torch.float64), torch.eye(1, 2).double(), torch.tensor([0.0, 2.0]).double())
    tensor([2., 1.], dtype=torch.float64)
    """
    inside = right @ row
    outside = (row - inside @ right).norm()
    scale = torch.maximum(singular_values.amax() if len(singular_values) else outside, row.norm())
    scale = torch.where(scale > 0, scale, 1.0)
    s = torch.cat([singular_values, singular_values.new_zeros(1)]) / scale
    z = (torch.cat([inside, outside[None]]) / scale).square()
    highest = (s[:1].square() + z.sum()).sqrt()
    upper = torch.cat([highest, s[:-1]])  # root i lies in [s_i, upper_i]
    middle = (s + upper) / 2
    nearer_lower = _above(_products(s, s), middle.square() - s.square(), z)
    nearer_lower[0] = True  # above the largest there is no pole to be near to
    origin = torch.where(nearer_lower, s, upper)
    low = torch.where(nearer_lower, 0.0, middle - upper)
    high = torch.where(nearer_lower, middle - s, 0.0)
    high[:1] = highest - s[:1]
    products = _products(origin, s)
    for _ in range(HALVINGS):
        offset = (low + high) / 2
        above = _above(products, offset * (2 * origin + offset), z)
        low, high = torch.where(above, low, offset), torch.where(above, offset, high)
    return (origin + (low + high) / 2) * scale


def _products(origin: Tensor, s: Tensor) -> Tensor:
    """``origin_i^2 - s_j^2``, each to full precision."""
    return (origin[:, None] - s) * (origin[:, None] + s)


def _above(products: Tensor, moved: Tensor, z: Tensor) -> Tensor:
    r"""Whether sigma is above its root: :math:`1 - \sum_j z_j / (\sigma^2 - s_j^2) > 0`, sigma^2 = origin^2 + moved."""
    poles = (products + moved[:, None]).reciprocal_()
    return poles @ z < 1
