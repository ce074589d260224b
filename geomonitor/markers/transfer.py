"""The truth about new classes: accuracies that features reach on classes which training does not see.

Each is a share of cases that are right, and is returned case by case, so that the error of a *change* can be paired:
the same points, folds and few-shot tasks are used each time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomonitor.markers.inputs import feature_matrix

FOLDS = 5
PENALTIES = 13
"""Ridge penalties that are tried, 1e-4 to 1e2 times the mean squared norm of a centred point."""
NEIGHBORS = 20
TEMPERATURE = 0.07
"""Of the weights of neighbours, exp(cos / 0.07); Wu et al. 2018."""
EPISODES, WAYS, SHOTS, QUERIES = 500, 5, 5, 15
SMALLEST_EIGENVALUE = 1e-12
"""Relative to the largest: below it, directions of the Gram matrix are rounding errors."""


def ridge_is_right(features: Tensor, labels: Tensor, *, folds: int = FOLDS) -> Tensor:
    r"""Whether ridge regression that is fitted on the other folds gives each point its class.

    Targets are +-1, one class against the rest, with an intercept. The penalty is the one of ``PENALTIES`` values with
    the least squared error of leaving one training point out, in closed form:
    :math:`\alpha_i / [(K_c + \lambda I)^{-1} - 11^T / (n \lambda)]_{ii}`.

    Args:
        features: ``(Q, N)``.
        labels: ``(Q,)`` class numbers from 0. The fold of a point is its place within its class, modulo ``folds``.
        folds: of which each is predicted once.

    Returns:
        ``(Q,)`` float64 of 0 and 1; NaN if the features of a training part are all equal.

    Source: as ``sklearn.linear_model.RidgeClassifierCV(alphas=...)`` on the same folds.

    >>> x = torch.tensor([[0.0], [0.1], [0.2], [1.0], [1.1], [1.2]])
    >>> ridge_is_right(x, torch.tensor([0, 0, 0, 1, 1, 1]), folds=3).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    x, labels = feature_matrix(features), labels.to(features.device)
    targets = 2 * torch.nn.functional.one_hot(labels).to(x.dtype) - 1
    fold = places(labels) % folds
    right = torch.full((len(x),), math.nan, dtype=x.dtype, device=x.device)
    for number in range(folds):
        tested = fold == number
        if tested.any() and not tested.all():
            scores = _ridge_scores(x[~tested], targets[~tested], x[tested])
            if scores is not None:
                right[tested] = (scores.argmax(1) == labels[tested]).to(x.dtype)
    return right if right.isfinite().all() else torch.full_like(right, math.nan)


def few_shot_is_right(features: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
    """Share of right queries in each of 500 fixed few-shot tasks: five classes, five shots, the nearest centroid.

    Args:
        features: ``(Q, N)``.
        labels: ``(Q,)`` class numbers from 0.
        seed: of the tasks.

    Returns:
        ``(500,)`` float64; NaN if a class has no more points than shots.

    Source: Sorscher, Ganguli, Sompolinsky 2022; ``-2 mean K_qs + mean K_ss'`` orders the centroids by distance.
    """
    x = feature_matrix(features)
    count = torch.bincount(labels.cpu())
    ways, queries = min(WAYS, len(count)), min(QUERIES, int(count.min()) - SHOTS)
    if queries < 1:
        return torch.full((EPISODES,), math.nan, dtype=x.dtype, device=x.device)
    draw = torch.Generator().manual_seed(seed)
    starts = torch.cumsum(count, 0) - count
    order = torch.argsort(labels.cpu(), stable=True)
    gram = x @ x.T
    right = []
    for _ in range(EPISODES):
        chosen = torch.randperm(len(count), generator=draw)[:ways].tolist()
        picked = [torch.randperm(int(count[c]), generator=draw)[: SHOTS + queries] + starts[c] for c in chosen]
        points = order[torch.stack(picked)].to(x.device)
        shots, asked = points[:, :SHOTS], points[:, SHOTS:].reshape(-1)
        within = gram[shots[:, :, None], shots[:, None, :]].mean((1, 2))
        distance = within - 2 * gram[asked][:, shots].mean(2)
        truth = torch.arange(ways, device=x.device).repeat_interleave(queries)
        right.append((distance.argmin(1) == truth).to(x.dtype).mean())
    return torch.stack(right)


def neighbors_are_right(features: Tensor, labels: Tensor) -> Tensor:
    """Whether the nearest neighbours of each point, itself left out, give it its class by weighted votes.

    Args:
        features: ``(Q, N)``; similarity is the cosine, a weight is ``exp(cos / 0.07)``.
        labels: ``(Q,)`` class numbers from 0; as many neighbours vote as the smallest class has others, at most 20.

    Returns:
        ``(Q,)`` float64 of 0 and 1; chance is ``(M - 1) / (Q - 1)``. NaN if a class has one point.

    Source: Wu et al. 2018, arXiv:1805.01978.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> neighbors_are_right(x, torch.tensor([0, 0, 1, 1])).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    x, labels = feature_matrix(features), labels.to(features.device)
    count = torch.bincount(labels)
    votes = min(NEIGHBORS, int(count.min()) - 1)
    if votes < 1:
        return torch.full((len(x),), math.nan, dtype=x.dtype, device=x.device)
    normalised = torch.nn.functional.normalize(x, dim=1)
    cosines = (normalised @ normalised.T).fill_diagonal_(-math.inf)
    nearest = cosines.topk(votes, dim=1)
    weights = torch.exp((nearest.values - 1) / TEMPERATURE)  # minus 1: a common factor, against overflow
    scores = torch.zeros(len(x), len(count), dtype=x.dtype, device=x.device)
    scores.scatter_add_(1, labels[nearest.indices], weights)
    return (scores.argmax(1) == labels).to(x.dtype)


def share(right: Tensor) -> tuple[float, float]:
    """Mean of cases and its standard error.

    Args:
        right: ``(n,)``, each in [0, 1].

    >>> share(torch.tensor([1.0, 1.0, 0.0, 1.0]))
    (0.75, 0.25)
    """
    return float(right.mean()), float(right.std()) / math.sqrt(len(right))


def places(labels: Tensor) -> Tensor:
    """The place of each point among those of its class, from 0.

    >>> places(torch.tensor([0, 1, 0, 0, 1])).tolist()
    [0, 0, 1, 2, 1]
    """
    one_hot = torch.nn.functional.one_hot(labels)
    return (one_hot.cumsum(0) * one_hot).sum(1) - 1


def _ridge_scores(x: Tensor, targets: Tensor, tested: Tensor) -> Tensor | None:
    """Scores ``(B, P)`` of tested points; None if nothing can be fitted."""
    mean, level = x.mean(0), targets.mean(0)
    z, y, n = x - mean, targets - level, len(x)
    scale = float(z.square().sum() / n)
    if not scale > 0:
        return None
    if z.shape[1] < n:  # the smaller of the two Gram matrices: the same answer
        values, axes = torch.linalg.eigh(z.T @ z)
        kept = values > SMALLEST_EIGENVALUE * values[-1]
        values, u = values[kept], z @ axes[:, kept] / values[kept].sqrt()
    else:
        values, u = torch.linalg.eigh(z @ z.T)
        kept = values > SMALLEST_EIGENVALUE * values[-1]
        values, u = values[kept], u[:, kept]
    inside, squares = u.T @ y, u.square()
    least: tuple[float, Tensor] | None = None
    for penalty in (scale * torch.logspace(-4, 2, PENALTIES, dtype=torch.float64)).tolist():
        # Times the penalty, so that nothing is divided by a small one. Outside of u only the penalty is left.
        shrunk = values / (values + penalty)
        alpha = y - u @ (shrunk[:, None] * inside)
        own = 1 - 1 / n - squares @ shrunk
        error = float((alpha / own[:, None]).square().mean())
        if least is None or error < least[0]:
            least = error, alpha / penalty
    assert least is not None  # there are penalties
    return (tested - mean) @ (z.T @ least[1]) + level
