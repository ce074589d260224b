"""The minimal-norm solution: one answer if many dual weights are optimal.

If columns with a zero gradient depend on the active ones (identical points in two classes, or a direction inside the
cone of more points than dimensions), many weights give the same projection of ``t``. Of these the one with the least
norm is unique, and so does not depend on the order of points or on the basis; it is the limit of a vanishing ridge.

Source: Mangasarian, J. Optim. Theory Appl. 121 (2004): the least-norm solution by a Newton method on its dual.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dpstrf  # type: ignore[import-untyped]

from geomonitor.glue.nnls.lawson_hanson import Array
from geomonitor.glue.nnls.semismooth_newton import falling_ridge, minimise

# Columns are dependent if a pivot of their Gram matrix (squared distance of a unit column to the others) is below this.
DEPENDENT = 1e-10
# The factor is complete when all pivots are below this: what is left of unit columns is rounding.
NO_PIVOT = 1e-14
# Newton's method has converged if the weights give the same projection to this part of its length.
SAME_PROJECTION = 1e-11


def are_dependent(gram: Array) -> bool:
    """Whether unit columns with this Gram matrix are linearly dependent.

    >>> are_dependent(np.eye(2)), are_dependent(np.ones((2, 2)))
    (False, True)
    """
    _, _, rank, _ = dpstrf(gram, lower=1, tol=DEPENDENT)
    return bool(rank < len(gram))


def minimal_norm(gram: Array, weights: Array) -> Array:
    """Of all non-negative weights ``x`` with the same sum of columns, the one with the least ``|x|``.

    With ``gram = L L^T`` it is ``max(0, L w)``; ``w`` minimises ``1/2 |max(0, L w)|^2 - w^T L^T weights``: as
    many unknowns as the columns have dimensions.

    Args:
        gram: ``(n, n)``, of signed unit columns.
        weights: ``(n,)``, non-negative.

    Returns:
        ``(n,)``, non-negative.

    >>> minimal_norm(np.ones((2, 2)), np.array([2.0, 0.0])).round(12).tolist()
    [1.0, 1.0]
    """
    packed, pivots, rank, _ = dpstrf(gram, lower=1, tol=NO_PIVOT)
    rows = np.empty((len(gram), rank))  # L, with as many columns as the Gram matrix has dimensions
    rows[pivots - 1] = np.tril(packed)[:, :rank]
    target = rows.T @ weights
    start: Array = np.asarray(np.linalg.lstsq(np.asarray(rows.T @ rows), target, rcond=None)[0], dtype=np.float64)
    found = np.maximum(rows @ minimise(rows, target, start), 0.0)
    if np.linalg.norm(rows.T @ found - target) > SAME_PROJECTION * np.linalg.norm(target):  # too far a start
        found = np.maximum(rows @ minimise(rows, target, falling_ridge(rows, target)), 0.0)
    return found
