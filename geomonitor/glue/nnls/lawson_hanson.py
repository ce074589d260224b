"""The active-set method of Lawson and Hanson for one direction in feature space: SciPy's `nnls`.

Equivalent to ``scipy.optimize.nnls(A, t)``; with a ridge to the same of ``[A; sqrt(ridge) I]`` and ``[t; 0]``, which
minimises ``1/2 ||A x - t||^2 + ridge/2 ||x||^2``.

Source: Lawson, Hanson, Solving Least Squares Problems (1974), chapter 23.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# SciPy's own cap is three times the number of columns; a saturated direction with many exchanges may need more.
ITERATIONS_PER_COLUMN = 10


def lawson_hanson(signed: Array, target: Array, ridge: float = 0.0) -> Array | None:
    """Dual weights of one direction.

    Args:
        signed: ``(N, C)``, signed columns of length one or zero.
        target: ``(N,)``, of length one.
        ridge: not negative.

    Returns:
        ``(C,)``, not negative; None if SciPy gives up.

    >>> lawson_hanson(np.eye(2), np.array([0.6, -0.8])).tolist()
    [0.6, 0.0]
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]  # slow to import: a third of a second

    count = signed.shape[1]
    if ridge:
        signed = np.concatenate((signed, ridge**0.5 * np.eye(count)))
        target = np.concatenate((target, np.zeros(count)))
    try:
        weights, _ = nnls(np.ascontiguousarray(signed), target, maxiter=ITERATIONS_PER_COLUMN * count)
    except RuntimeError:  # too many iterations
        return None
    return np.asarray(weights, dtype=np.float64)
