r"""Counts, means and scatter of grouped features, which can be added up batch by batch and rank by rank.

The scatter is kept as a *factor* :math:`F` with :math:`F^\top F = \sum_i (x_i - \mu_{g(i)})(x_i -
\mu_{g(i)})^\top`, never as that product: singular values of :math:`F` keep all digits, but eigenvalues of a
product lose half of them. :math:`F` has as many rows as points were seen and is cut back to ``N`` rows by a QR
decomposition whenever there are twice as many, so the state is bounded by ``2 N x N`` numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Counts, means and scatter of points in ``G`` groups, all float64."""

    counts: Tensor
    """``(G,)`` points in each group."""
    means: Tensor
    """``(G, N)`` mean of each group; zero if a group is empty."""
    factor: Tensor
    """``(R, N)`` with ``factor.T @ factor`` = scatter of all points around the mean of their own group."""
    spread: Tensor
    """``(G,)`` squared distances of the points of each group from its mean, summed."""


def empty_moments(groups: int, features: Tensor) -> Moments:
    """``Moments`` of no points, on the device and of the width of ``features (B, N)``."""
    width = features.shape[1]
    new = features.new_zeros
    return Moments(
        new(groups, dtype=torch.float64),
        new((groups, width), dtype=torch.float64),
        new((0, width), dtype=torch.float64),
        new(groups, dtype=torch.float64),
    )


def moments_of(x: Tensor, groups: Tensor, count: int) -> Moments:
    """``Moments`` of points that are all in memory; their differences from the means are the factor.

    Args:
        x: ``(Q, N)`` float64.
        groups: ``(Q,)`` group of each point, in ``0 .. count - 1``.
        count: number of groups ``G``.

    >>> moments_of(torch.tensor([[1.0], [3.0]]).double(), torch.tensor([0, 0]), 1).spread
    tensor([2.], dtype=torch.float64)
    """
    member = (groups == torch.arange(count, device=groups.device)[:, None]).to(torch.float64)  # (G, Q)
    counts = member.sum(dim=1)
    means = member @ x / counts[:, None]
    rows = x - means[groups]
    rest = member @ rows / counts[:, None]  # the rounding of the first means
    rows = rows - rest[groups]
    return Moments(counts, means + rest, rows, member @ rows.square().sum(dim=1))


def add_points(moments: Moments, features: Tensor, groups: Tensor) -> Moments:
    r"""``Moments`` after some more points; every shape is known beforehand, so nothing waits for the device.

    A batch of group ``g`` with mean :math:`m_2` and count :math:`n_2` joins :math:`(n_1, m_1)`. The cross term
    :math:`\frac{n_1 n_2}{n_1 + n_2} (m_2 - m_1)(m_2 - m_1)^\top` (Chan, Golub, LeVeque 1983) is spread over the
    rows of the batch, which is exact because they sum to zero once :math:`m_2` is subtracted.

    Args:
        moments: of the points so far, ``G`` groups.
        features: ``(B, N)``.
        groups: ``(B,)`` group of each point; points of a group outside ``0 .. G-1`` are left out.
    """
    x = features.to(torch.float64)
    member = groups[:, None] == torch.arange(len(moments.counts), device=groups.device)  # (B, G)
    member = member.to(torch.float64)
    inside = member.sum(dim=1, keepdim=True)
    x = torch.where(inside > 0, x, 0.0)
    counts = member.sum(dim=0)
    # Two passes: the rounding of a plain mean would show in the scatter of features far from the origin.
    means = member.T @ x / counts.clamp(min=1)[:, None]
    means = means + member.T @ (x - member @ means) / counts.clamp(min=1)[:, None]
    total = moments.counts + counts
    shift = means - moments.means
    cross = (moments.counts / total.clamp(min=1)).sqrt()[:, None] * shift
    spread = member.T @ (inside * (x - member @ means)).square().sum(dim=1) + counts * cross.square().sum(dim=1)
    rows = inside * (x - member @ (means - cross))
    return Moments(
        total,
        moments.means + (counts / total.clamp(min=1))[:, None] * shift,
        _bounded(torch.cat([moments.factor, rows])),
        moments.spread + spread,
    )


def merge_moments(parts: list[Moments]) -> Moments:
    """``Moments`` of the union of disjoint sets of points, for instance of the points that two ranks saw."""
    merged = parts[0]
    for part in parts[1:]:
        total = merged.counts + part.counts
        share = (part.counts / total.clamp(min=1))[:, None]
        shift = part.means - merged.means
        cross = (merged.counts[:, None] * share).sqrt() * shift
        merged = Moments(
            total,
            merged.means + share * shift,
            _bounded(torch.cat([merged.factor, part.factor, cross])),
            merged.spread + part.spread + cross.square().sum(dim=1),
        )
    return merged


def _bounded(factor: Tensor) -> Tensor:
    rows, width = factor.shape
    if rows <= 2 * width:
        return factor
    cut_back: Tensor = torch.linalg.qr(factor, mode="r").R
    return cut_back
