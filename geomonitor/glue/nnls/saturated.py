"""Samples whose cone covers nearly the whole space: hundreds of active points, where active sets grow slowly.

The penalised primal problem ``min_v 1/2 ||v - t||^2 + 1/(2 ridge) |max(0, A^T v)|^2`` (columns of ``A`` are
the signed points) has as many unknowns as features have dimensions, and Newton's method takes a few steps
from one ridge to the next smaller one, however many points are active. Its active set is then made exact. If
nothing is left of ``v``, the direction is inside the cone, and the limit of a vanishing ridge gives the
smallest dual weights.
"""

from __future__ import annotations

import numpy as np

from geomonitor.glue.nnls.smallest_weights import Array, minimise

# Each ridge starts from the solution of the one before.
RIDGES = (1e-2, 1e-4, 1e-6, 1e-8)
# Between ridges a rough solution is enough; the last one tells the active set.
ROUGH, FINE = 1e-3, 1e-9
# If less is left of a unit direction than the last ridge can leave (its weights times 1e-8), it may be in the
# cone.
INSIDE = 1e-5
# The projection must then be the direction itself to this accuracy.
SAME_DIRECTION = 1e-12
# A constraint of unit columns is violated by more than this, or by rounding.
VIOLATION = 1e-12
# Exchanges of the active set after Newton's method; it is exact or nearly so.
EXCHANGES = 20


def saturated_weights(signed: Array, target: Array) -> tuple[Array, bool] | None:
    """Dual weights of one sample.

    Args:
        signed: ``(N, C)``, signed columns of length one or zero.
        target: ``(N,)``, of length one.

    Returns:
        weights ``(C,)`` and whether they are the smallest of all optimal ones; None if no exact answer was
        found.

    >>> weights, smallest = saturated_weights(np.eye(2), np.array([0.6, 0.8]))
    >>> weights.round(9).tolist(), smallest
    ([0.6, 0.8], True)
    """
    rows = np.ascontiguousarray(signed.T)
    w = np.zeros_like(target)
    for ridge in RIDGES:
        w = minimise(rows, target, w, ridge=ridge, accuracy=FINE if ridge == RIDGES[-1] else ROUGH)
    if np.linalg.norm(w) * RIDGES[-1] < INSIDE:
        weights = np.maximum(rows @ minimise(rows, target, w), 0.0)
        if np.linalg.norm(weights @ rows - target) <= SAME_DIRECTION:
            return weights, True
    exact = _exchanged(rows, target, rows @ w > 0)
    return None if exact is None else (exact, False)


def _exchanged(rows: Array, target: Array, active: np.ndarray) -> Array | None:
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
