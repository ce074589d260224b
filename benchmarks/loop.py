"""The baselines: a loop over the directions, and the formulas as they are written.

By `scipy.optimize.nnls` in feature space, which the published ratios are against, or by compiled FNNLS on the Gram
matrix, which a user would write who knows that the directions share it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from time import process_time

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.fnnls import compiled
from geomonitor.glue.draws import draw_dichotomies, draw_directions, draw_pairs

Solver = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From signs of the points ``(Q,)`` and a direction ``(N,)`` to weights ``(Q,)``."""


def by_scipy(points: np.ndarray) -> Solver:
    def solve(signs: np.ndarray, t: np.ndarray) -> np.ndarray:
        signed = np.ascontiguousarray((points * signs[:, None]).T)
        return nnls(signed, t, maxiter=30 * signed.shape[1])[0]

    return solve


def by_fnnls(points: np.ndarray) -> Solver:
    gram, fnnls = points @ points.T, compiled()
    tolerance = 10 * np.finfo(float).eps * float(np.abs(gram).sum(axis=0).max()) * len(gram)
    return lambda signs, t: fnnls(gram, signs, signs * (points @ t), tolerance)


def loop_seconds(
    features: Tensor,
    labels: Tensor,
    *,
    directions: int,
    samples: int,
    pairs: int | None,
    solver: Callable[[np.ndarray], Solver] = by_scipy,
) -> float:
    """Seconds of processor time for all samples, from the time of some of them.

    Args:
        features: ``(Q, N)``.
        labels: ``(Q,)``.
        directions: ``T``.
        samples: how many directions (of pairs) are timed; their time is multiplied by the number of all over this.
        pairs: number of class pairs; None: joint.
        solver: what is prepared once for the points of a problem, its time included, and then solves each direction.
    """
    classes = int(labels.max()) + 1
    start = process_time()
    ts = draw_directions(directions, features.shape[1], seed=0).numpy()
    ys = draw_dichotomies(directions, classes if pairs is None else 2, "balanced", seed=0).numpy()
    chosen = [range(classes)] if pairs is None else draw_pairs(classes, pairs, seed=0).tolist()
    points, names = features.double().numpy(), labels.numpy()
    problems = []
    for group in chosen:
        rows = np.isin(names, list(group))
        _, own = np.unique(names[rows], return_inverse=True)
        problems.append((points[rows], own, solver(points[rows])))
    drawn = process_time() - start
    work = [(problem, t, y) for t, y in zip(ts, ys, strict=True) for problem in problems]
    step = max(1, len(work) // samples)
    timed = work[::step][:samples]
    start = process_time()
    stacks = [(anchors(*problem, t, y), t) for problem, t, y in timed]
    s0 = np.mean([stack for stack, _ in stacks], axis=0)
    np.mean([scalars(stack, s0, t) for stack, t in stacks], axis=0)
    return drawn + (process_time() - start) * len(work) / len(timed)


def anchors(points: np.ndarray, labels: np.ndarray, solve: Solver, t: np.ndarray, y: np.ndarray) -> np.ndarray:
    weights = solve(y[labels], t)
    stack = np.zeros((len(y), points.shape[1]))
    for mu in range(len(y)):
        own = weights * (labels == mu)
        if own.sum() > 0:
            stack[mu] = own @ points / own.sum()
    return stack


def scalars(s: np.ndarray, s0: np.ndarray, t: np.ndarray) -> list[float]:
    s1 = s - s0
    a = (s @ t) @ np.linalg.pinv(s @ s.T) @ (s @ t)
    b = (s1 @ t) @ np.linalg.pinv(s1 @ s1.T) @ (s1 @ t)
    c = (s1 @ t) @ np.linalg.pinv(s0 @ s0.T + s1 @ s1.T) @ (s1 @ t)
    lengths0, lengths1 = np.linalg.norm(s0, axis=1), np.linalg.norm(s1, axis=1)
    tiny = np.finfo(float).tiny
    axis, mixed = [], []
    cosines1 = (s1 @ s1.T) / np.maximum(np.outer(lengths1, lengths1), tiny)
    cosines01 = (s0 @ s1.T) / np.maximum(np.outer(lengths0, lengths1), tiny)
    for mu, nu in combinations(range(len(s)), 2):
        axis.append(cosines1[mu, nu])
        mixed.append((cosines01[mu, nu] + cosines01[nu, mu]) / 2)
    return [a, b, c, *(float(f(x)) for x in (axis, mixed) for f in (np.mean, mean_absolute))]


def mean_absolute(values: list[float]) -> float:
    return float(np.mean(np.abs(values)))
