"""The definition, taken literally: one sample at a time in feature space, with SciPy and no Gram matrix."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls
from torch import Tensor

MEASURES = (
    "capacity",
    "dimension",
    "radius",
    "utility",
    "center_alignment",
    "axis_alignment",
    "center_axis_alignment",
    "absolute_center_alignment",
    "absolute_axis_alignment",
    "absolute_center_axis_alignment",
)

# Singular values of a stack of unit rows below this part of the largest are rounding.
RCOND = 1e-10


def anchor_stack(points: np.ndarray, labels: np.ndarray, t: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Anchors (P, N) of one sample."""
    signed = np.ascontiguousarray((points * y[labels][:, None]).T)
    weights, _ = nnls(signed, t, maxiter=30 * signed.shape[1])
    anchors = np.zeros((labels.max() + 1, points.shape[1]))
    for mu in range(len(anchors)):
        own = weights[labels == mu]
        if own.sum() > 0:
            anchors[mu] = own @ points[labels == mu] / own.sum()
    return anchors


def projected_square(rows: np.ndarray, t: np.ndarray) -> float:
    """Squared length of the projection of t on the span of the rows, by least squares in N dimensions."""
    norms = np.linalg.norm(rows, axis=1)
    rows = rows[norms > 0] / norms[norms > 0, None]
    if len(rows) == 0:
        return 0.0
    coefficients = np.linalg.lstsq(rows.T, t, rcond=RCOND)[0]
    return float(np.sum((rows.T @ coefficients) ** 2))


def reference_geometry(features: Tensor, labels: Tensor, directions: Tensor, dichotomies: Tensor) -> dict[str, float]:
    """All ten measures, by name."""
    points = features.double().numpy() / features.double().abs().max().item()
    names, classes = np.unique(labels.numpy(), return_inverse=True)
    ts, ys = directions.numpy(), dichotomies.numpy()
    stacks = np.stack([anchor_stack(points, classes, t, y) for t, y in zip(ts, ys, strict=True)])
    s0 = stacks.mean(axis=0)
    s1s = stacks - s0
    s1s[np.linalg.norm(s1s, axis=2) < 1e-13 * np.abs(points).max()] = 0.0
    P = len(names)
    a = np.mean([projected_square(s, t) for s, t in zip(stacks, ts, strict=True)])
    b = np.mean([projected_square(s1, t) for s1, t in zip(s1s, ts, strict=True)])
    c = np.mean([centered_and_axes(s0, s1, t) for s1, t in zip(s1s, ts, strict=True)])
    center = off_diagonal(cosines(s0, s0))
    axis = np.stack([off_diagonal(cosines(s1, s1)) for s1 in s1s])
    mixed = np.stack([off_diagonal(cosines(s0, s1)) for s1 in s1s])
    values = [P / a, b / P, np.sqrt(c / (b - c)), c / a]
    values += [np.nanmean(x) for x in (center, axis, mixed)] + [np.nanmean(np.abs(x)) for x in (center, axis, mixed)]
    return dict(zip(MEASURES, map(float, values), strict=True))


def centered_and_axes(s0: np.ndarray, s1: np.ndarray, t: np.ndarray) -> float:
    """The scalar c: (S1 t)^T (S0 S0^T + S1 S1^T)^+ (S1 t), through the stack [S0 | S1] of rows of length
    2N.
    """
    both = np.concatenate([s0, s1], axis=1)
    return projected_square(both, np.concatenate([np.zeros_like(t), t]))


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines of rows, NaN where a row is zero."""
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None]
    return np.divide(left @ right.T, norms, out=np.full_like(norms, np.nan), where=norms > 0)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]
