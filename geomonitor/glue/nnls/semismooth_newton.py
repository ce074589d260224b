"""Semismooth Newton for one direction: for hundreds of active columns, at which active sets grow slowly.

With a ridge the optimal weights are ``x = max(0, A^T w)``, where ``w`` solves ``A max(0, A^T w) + ridge w = t``. The
left side less the right is the gradient of a convex, piecewise quadratic function with as many unknowns as features
have dimensions, and Newton's method takes a few steps from one ridge to the next smaller one, however many columns are
active. Without a ridge the active set of a small one is made exact; if nothing is left of ``t - A x``, the direction is
inside the cone, and the limit of a vanishing ridge gives the smallest weights.

Source: Qi, Sun, Math. Programming 58 (1993), semismooth Newton; Hintermueller, Ito, Kunisch, SIAM J. Optim. 13 (2002):
on problems with bounds it is an active-set method that exchanges all columns of the wrong sign at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv  # type: ignore[import-untyped]

from geomonitor.glue.nnls.block_pivoting import VIOLATION
from geomonitor.glue.nnls.lawson_hanson import Array

# Each ridge starts from the solution of the one before.
RIDGES = (1e-2, 1e-4, 1e-6, 1e-8)
# Between ridges a rough solution is enough; the last one gives the active set.
ROUGH, FINE = 1e-3, 1e-9
# If less is left of a unit direction than the last ridge can leave (its weights times 1e-8), it may be in the cone.
INSIDE = 1e-5
# The projection must then be the direction itself to this accuracy.
SAME_DIRECTION = 1e-12
# Exchanges of the active set after Newton's method; it is exact or nearly so.
EXCHANGES = 20
# Newton's matrix is singular if few columns are positive; this part of its trace makes it regular.
DAMPING = 1e-12
# The weights must give the same projection to this part of its length, with a ridge to the second one: the conditions
# of optimality are then met to ten times this.
EXACT, EXACT_WITH_RIDGE = 1e-13, 1e-12
# Newton's method on a piecewise quadratic function ends in a few steps; this is only a stop.
STEPS = 100
# STALLED steps without a shorter gradient (by a tenth): what is left is rounding of nearly dependent columns. Far from
# the solution of a small ridge it is not: there the function falls at every step, but the gradient may grow for long.
STALLED, SHORTER, NEAR = 20, 0.9, 1e-6
# A step that brings less than SUFFICIENT of the decrease that its slope promises is halved, at most HALVINGS times.
SUFFICIENT, HALVINGS = 1e-4, 30


def semismooth_newton(signed: Array, target: Array, ridge: float = 0.0) -> tuple[Array, bool] | None:
    """Dual weights of one direction.

    Args:
        signed: ``(N, C)``, signed columns of length one or zero.
        target: ``(N,)``, of length one.
        ridge: not negative.

    Returns:
        weights ``(C,)`` and whether they are known to be the smallest of all optimal ones; None if no exact answer was
        found.

    >>> weights, smallest = semismooth_newton(np.eye(2), np.array([0.6, 0.8]))
    >>> weights.round(9).tolist(), smallest
    ([0.6, 0.8], True)
    """
    rows = np.ascontiguousarray(signed.T)
    w = falling_ridge(rows, target, ridge)
    if ridge:
        w = minimise(rows, target, w, ridge=ridge, accuracy=EXACT_WITH_RIDGE, near=NEAR)
        return np.maximum(rows @ w, 0.0), True
    if np.linalg.norm(w) * RIDGES[-1] < INSIDE:
        weights = np.maximum(rows @ minimise(rows, target, w), 0.0)
        if np.linalg.norm(weights @ rows - target) <= SAME_DIRECTION:
            return weights, True
    exact = _exchanged(rows, target, rows @ w > 0)
    return None if exact is None else (exact, False)


def falling_ridge(rows: Array, target: Array, ridge: float = 0.0) -> Array:
    """A start for :func:`minimise`: the solutions of larger ridges one after the other, from zero."""
    w = np.zeros_like(target)
    for larger in RIDGES:
        if larger > ridge:
            w = minimise(rows, target, w, ridge=larger, accuracy=FINE if larger == RIDGES[-1] else ROUGH)
    return w


def minimise(
    rows: Array,
    target: Array,
    start: Array,
    *,
    ridge: float = 0.0,
    accuracy: float = EXACT,
    near: float = np.inf,
) -> Array:
    """The ``w`` that minimises ``1/2 |max(0, rows w)|^2 + ridge/2 |w|^2 - w^T target``, by Newton's method.

    Args:
        rows: ``(n, r)``.
        target: ``(r,)``.
        start: ``(r,)``.
        ridge: not negative.
        accuracy: length of the remaining gradient as a part of the target's.
        near: a stop for lack of progress needs a gradient below this part of the target's length.
    """
    w, active, matrix = start, np.zeros(len(rows), dtype=bool), np.zeros((len(target), len(target)))
    length = float(np.linalg.norm(target))
    shortest, stalled = np.inf, 0
    for _ in range(STEPS):
        image = rows @ w
        gradient = rows.T @ np.maximum(image, 0.0) + ridge * w - target
        size = float(np.linalg.norm(gradient))
        closer = size < SHORTER * shortest or size > near * length
        shortest, stalled = (size, 0) if closer else (shortest, stalled + 1)
        if size <= accuracy * length or stalled > STALLED:
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


def _exchanged(rows: Array, target: Array, active: NDArray[np.bool_]) -> Array | None:
    """Least squares on an active set, corrected until it is the right one."""
    for _ in range(EXCHANGES):
        own = rows[active]
        if len(own) > rows.shape[1]:
            return None
        solution, *_ = np.linalg.lstsq(own.T, target, rcond=None)
        gradient = rows @ (target - solution @ own)
        gradient[active] = 0.0
        wrong, missing = solution <= 0, gradient > VIOLATION
        if not wrong.any() and not missing.any():
            weights = np.zeros(len(rows))
            weights[active] = solution
            return weights
        active = active.copy()
        active[np.flatnonzero(active)[wrong]] = False
        active |= missing
    return None
