"""One answer where many dual weights are optimal: the smallest ones.

If columns with a zero gradient depend on the active ones (identical points in two classes, or a direction
inside the cone of more points than dimensions), many weights give the same projection of ``t``. Of these the
one with the least norm is unique, and so does not depend on the order of points or on the basis; it is the
limit of a vanishing ridge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv, dpstrf  # type: ignore[import-untyped]

Array = NDArray[np.float64]

# Columns are dependent if a pivot of their Gram matrix (squared distance of a unit column to the others) is
# below this.
DEPENDENT = 1e-10
# The factor is complete when all pivots are below this: what is left of unit columns is rounding.
NO_PIVOT = 1e-14
# Newton's matrix is singular where few columns are positive; this part of its trace makes it regular.
DAMPING = 1e-12
# The weights must give the same projection to this part of its length.
EXACT = 1e-13
# Newton's method on a piecewise quadratic function ends in a few steps; this is only a stop.
STEPS = 100
# So many steps without a shorter gradient (by a tenth): what is left is rounding of nearly dependent columns.
STALLED, SHORTER = 20, 0.9
# A step must bring this part of the decrease that its slope promises, or it is halved, so many times at most.
SUFFICIENT, HALVINGS = 1e-4, 30


def are_dependent(gram: Array) -> bool:
    """Whether unit columns with this Gram matrix are linearly dependent.

    >>> are_dependent(np.eye(2)), are_dependent(np.ones((2, 2)))
    (False, True)
    """
    _, _, rank, _ = dpstrf(gram, lower=1, tol=DEPENDENT)
    return bool(rank < len(gram))


def smallest_weights(gram: Array, weights: Array) -> Array:
    """Of all non-negative weights ``x`` with the same sum of columns, the one with the least ``|x|``.

    With ``gram = L L^T`` it is ``max(0, L w)``, where ``w`` minimises ``1/2 |max(0, L w)|^2 - w^T L^T
    weights``: as many unknowns as the columns have dimensions, found by Newton's method.

    Args:
        gram: ``(n, n)``, of signed unit columns.
        weights: ``(n,)``, non-negative.

    Returns:
        ``(n,)``, non-negative.

    >>> smallest_weights(np.ones((2, 2)), np.array([2.0, 0.0])).round(12).tolist()
    [1.0, 1.0]
    """
    rows = _factor(gram)
    target = rows.T @ weights
    start: Array = np.asarray(np.linalg.lstsq(np.asarray(rows.T @ rows), target, rcond=None)[0], dtype=np.float64)
    return np.maximum(rows @ minimise(rows, target, start), 0.0)


def minimise(rows: Array, target: Array, start: Array, *, ridge: float = 0.0, accuracy: float = EXACT) -> Array:
    """The ``w`` that minimises ``1/2 |max(0, rows w)|^2 + ridge/2 |w|^2 - w^T target``, by Newton's method.

    Args:
        rows: ``(n, r)``.
        target: ``(r,)``.
        start: ``(r,)``.
        ridge: not negative.
        accuracy: length of the remaining gradient as a part of the target's.
    """
    w, active, matrix = start, np.zeros(len(rows), dtype=bool), np.zeros((len(target), len(target)))
    least = accuracy * float(np.linalg.norm(target))
    shortest, stalled = np.inf, 0
    for _ in range(STEPS):
        image = rows @ w
        gradient = rows.T @ np.maximum(image, 0.0) + ridge * w - target
        size = float(np.linalg.norm(gradient))
        shortest, stalled = (size, 0) if size < SHORTER * shortest else (shortest, stalled + 1)
        if size <= least or stalled > STALLED:
            break
        matrix, active = _updated(matrix, rows, active, image > 0)
        regular = matrix.copy()
        regular[np.diag_indices_from(regular)] += ridge + DAMPING * max(1.0, np.trace(matrix))
        _, solved, failed = dposv(regular, gradient)
        if failed:
            break
        step = -solved
        change = rows @ step
        full = rows.T @ np.maximum(image + change, 0.0) + ridge * (w + step) - target
        if np.linalg.norm(full) > size / 2:  # far away; near the end values are all rounding
            linear = (target - ridge * w) @ step
            curvature = ridge * (step @ step)
            step *= _step_length(image, change, slope=gradient @ step, linear=linear, curvature=curvature)
        w = w + step
    return w


def _updated(
    matrix: Array, rows: Array, before: NDArray[np.bool_], now: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """``rows^T rows`` over the active rows, from that over those active before if fewer have changed."""
    changed = before != now
    if 2 * changed.sum() > now.sum():
        return rows[now].T @ rows[now], now
    entered, left = rows[now & changed], rows[before & changed]
    return matrix + entered.T @ entered - left.T @ left, now


def _factor(gram: Array) -> Array:
    """``L`` with as many columns as the Gram matrix has dimensions, ``gram = L L^T``."""
    packed, pivots, rank, _ = dpstrf(gram, lower=1, tol=NO_PIVOT)
    factor = np.empty((len(gram), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    return factor


def _step_length(image: Array, change: Array, *, slope: float, linear: float, curvature: float) -> float:
    """First of 1, 1/2, 1/4, ... that lowers the function enough."""
    start = np.maximum(image, 0.0)
    length = 1.0
    for _ in range(HALVINGS):
        moved = np.maximum(image + length * change, 0.0)
        growth = 0.5 * (moved - start) @ (moved + start) + 0.5 * length**2 * curvature
        decrease = growth - length * linear
        if decrease <= SUFFICIENT * length * slope:
            break
        length /= 2
    return length
