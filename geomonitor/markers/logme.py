"""LogME: the log evidence of a linear model of the labels, a score of a representation on a labelled target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomonitor.markers.inputs import feature_matrix

MOST_ROUNDS, STOP = 11, 1e-3
"""Of the fixed point, and the relative change of ``alpha / beta`` at which it has been found; of the authors' code."""
EPSILON = 1e-5
"""Keeps both precisions finite; of the authors' code."""


def logme(features: Tensor, labels: Tensor) -> float:
    r"""Mean over classes of the largest log evidence of one-hot labels, per point.

    For each class, with singular values :math:`s_k` of ``Z`` and :math:`m`, :math:`r` the posterior mean and residual:
    :math:`\gamma = \sum s_k^2/(s_k^2+\alpha/\beta)`, :math:`\alpha = \gamma/|m|^2`, :math:`\beta = (n-\gamma)/|r|^2`,
    until it settles.

    Args:
        features: ``(n, N)``, scaled here to a mean square of 1.
        labels: ``(n,)`` class numbers from 0.

    Returns:
        Higher is better; NaN where features interpolate any labels (rank ``n - 1`` or more), or are all 0.

    Source: You, Liu, Wang, Long 2021, arXiv:2102.11005, and the code of thuml/LogME, which does not scale.

    >>> x = torch.tensor([[1.0, 0.0], [1.1, 0.1], [0.0, 1.0], [0.1, 1.1], [1.0, 0.1], [0.0, 0.9]])
    >>> logme(x, torch.tensor([0, 0, 1, 1, 0, 1])) > logme(x, torch.tensor([0, 1, 0, 1, 0, 1]))
    True
    """
    z = feature_matrix(features)
    n, width = z.shape
    square = float(z.square().mean())
    if not square > 0:
        return math.nan
    u, singular, _ = torch.linalg.svd(z / math.sqrt(square), full_matrices=False)
    rank = int((singular > singular[0] * max(n, width) * torch.finfo(z.dtype).eps).sum())
    if rank >= n - 1:
        return math.nan
    u, sigma = u[:, :rank], singular[:rank].square()
    targets = torch.nn.functional.one_hot(labels).to(z.dtype)
    evidences = [_evidence(sigma, u.T @ y, float(y @ y), n, width) for y in targets.T]
    return sum(evidences) / len(evidences)


def _evidence(sigma: Tensor, x: Tensor, y2: float, n: int, width: int) -> float:
    outside = max(0.0, y2 - float(x @ x))  # squared length of the labels outside of the features
    alpha, beta = 1.0, 1.0
    for _ in range(MOST_ROUNDS):
        t = alpha / beta
        gamma = float((sigma / (sigma + t)).sum())
        m2 = float((sigma * x.square() / (t + sigma).square()).sum())
        r2 = float((x.square() / (1 + sigma / t).square()).sum()) + outside
        alpha, beta = gamma / (m2 + EPSILON), (n - gamma) / (r2 + EPSILON)
        if abs(alpha / beta - t) / t <= STOP:
            break
    evidence = width / 2 * math.log(alpha) + n / 2 * math.log(beta)
    evidence -= 0.5 * float((alpha + beta * sigma).log().sum()) + (width - len(sigma)) / 2 * math.log(alpha)
    evidence -= beta / 2 * r2 + alpha / 2 * m2 + n / 2 * math.log(2 * math.pi)
    return evidence / n
