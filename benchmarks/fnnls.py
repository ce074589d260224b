"""Fast non-negative least squares on the Gram matrix, compiled: what a user in a hurry would write.

Source: Bro, de Jong, J. Chemometrics 11 (1997). One column enters at a time, by the largest gradient; the system of the
active columns is solved anew each time (LAPACK), as in the published codes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np


def fnnls(gram: np.ndarray, signs: np.ndarray, products: np.ndarray, tolerance: float) -> np.ndarray:
    """``argmin 1/2 (y x)^T K (y x) - h^T x`` over ``x >= 0``, for signs ``y`` of the points."""
    size = len(products)
    weights, active = np.zeros(size), np.zeros(size, np.bool_)
    for _ in range(30 * size):
        gradient = products.copy()
        for i in np.flatnonzero(active):
            gradient -= weights[i] * signs[i] * signs * gram[i]
        best = -1
        for j in range(size):
            if not active[j] and gradient[j] > tolerance and (best < 0 or gradient[j] > gradient[best]):
                best = j
        if best < 0:
            break
        active[best] = True
        while True:
            own = np.flatnonzero(active)
            block = np.empty((len(own), len(own)))
            for i in range(len(own)):
                for j in range(len(own)):
                    block[i, j] = signs[own[i]] * signs[own[j]] * gram[own[i], own[j]]
            solution = np.linalg.solve(block, products[own])
            if solution.min() > 0:
                break
            step = np.inf
            for i in range(len(own)):
                if solution[i] <= 0:
                    step = min(step, weights[own[i]] / (weights[own[i]] - solution[i]))
            for i in range(len(own)):
                weights[own[i]] += step * (solution[i] - weights[own[i]])
                if solution[i] <= 0 and weights[own[i]] <= tolerance:
                    weights[own[i]], active[own[i]] = 0.0, False
            if not active.any():
                break
        weights[:] = 0.0
        if active.any():
            weights[own] = solution
    return weights


@cache
def compiled() -> Callable[..., np.ndarray]:
    import numba

    function = numba.njit(fnnls)
    function(np.eye(2), np.ones(2), np.ones(2), 1e-12)
    return function
