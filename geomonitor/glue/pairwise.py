"""The pairwise mode: every pair of classes a problem of its own, all with the same directions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor._threads import threads_for
from geomonitor.glue.anchors import solve_anchors
from geomonitor.glue.centers import Centers, Segments, center_alignment, centers, sum_of_shares
from geomonitor.glue.chunks import DENSE_ARRAYS, budget_left, chunks, joined
from geomonitor.glue.nnls.gram_problem import GramProblem
from geomonitor.glue.nnls.solve import FeatureSpace
from geomonitor.glue.points import Points, nonzero
from geomonitor.glue.ranks import Ranks, own_share
from geomonitor.glue.scalars import DirectionScalars, Scalars, sample_scalars, with_effects


def pairwise_scalars(
    points: Points, directions: Tensor, *, signs: Tensor, pairs: Tensor, ridge: float, ranks: Ranks, memory_bytes: int
) -> DirectionScalars:
    """Every pair of classes a problem of its own, all with the same directions; a rank solves a part of the
    pairs.

    Args:
        points: the points.
        directions: ``(T, N)``.
        signs: ``(pairs, T, 2)``.
        pairs: ``(pairs, 2)``, class numbers.
        ridge: on the Gram matrix of unit columns, in the solver only.
        ranks: who solves which pairs.
        memory_bytes: about how much the arrays of a chunk of pairs may take.
    """
    lengths = torch.linalg.vector_norm(directions, dim=1)
    unit_directions = directions / nonzero(lengths)[:, None]
    pair_points = _PairPoints.of(points, unit_directions)
    draws, width = len(directions), pair_points.width
    pair_bytes = 8 * 2 * width * (2 * width + DENSE_ARRAYS * draws)
    size = budget_left(memory_bytes, points.units, pair_points.products) // pair_bytes
    parts, center_parts = [], []
    for rows in chunks(own_share(len(pairs), ranks), size, directions.device):
        with threads_for(2 * width, directions.device):
            scalars, mean = _solve_pairs(pair_points, pairs[rows], signs[rows], lengths, ridge)
        parts.append(scalars)
        center_parts.append(torch.stack(center_alignment(mean.gram), dim=1))
    fields = [field.view(-1, draws) for field in joined(parts, points.units)]
    center = ranks.gather(torch.cat(center_parts) if center_parts else points.units.new_zeros(0, 2))
    return DirectionScalars(Scalars(*(ranks.gather(field) for field in fields)), center[:, 0], center[:, 1])


class _PairPoints(NamedTuple):
    """What the pairs share: products with the directions, and the positions of the points of a class."""

    points: Points
    unit_directions: Tensor  # (T, N)
    products: Tensor  # (Q' + 1, T), with the unit directions; the last row is zero
    starts: list[int]
    counts: list[int]
    width: int  # of the largest class

    @classmethod
    def of(cls, points: Points, unit_directions: Tensor) -> _PairPoints:
        counts = points.class_of.bincount(minlength=points.classes)
        products = points.units @ unit_directions.T
        products = torch.cat((products, torch.zeros_like(products[:1])))
        starts = (counts.cumsum(0) - counts).tolist()
        return cls(points, unit_directions, products, starts, counts.tolist(), max(1, int(counts.max())))

    def columns(self, pairs: Tensor) -> Tensor:
        """Points of each pair, ``(G, 2 width)``, classes one after the other; ``Q'`` for padding."""
        place = torch.arange(self.width, device=pairs.device)
        start = torch.tensor(self.starts, device=pairs.device)[pairs][..., None]
        count = torch.tensor(self.counts, device=pairs.device)[pairs][..., None]
        return torch.where(place < count, start + place, len(self.points.units)).flatten(1)

    def gram(self, pairs: Tensor) -> Tensor:
        """Gram matrices of the pairs, ``(G, 2 width, 2 width)``."""
        width = self.width
        numbers = pairs.tolist()
        used = sorted({number for pair in numbers for number in pair})
        own = self.products.new_zeros(len(used), width, width)
        for place, number in enumerate(used):
            own[place, : self.counts[number], : self.counts[number]] = self._block(number, number)
        order = torch.zeros(len(self.counts), dtype=torch.int64)
        order[used] = torch.arange(len(used))
        order = order.to(pairs.device)
        gram = self.products.new_zeros(len(pairs), 2 * width, 2 * width)
        gram[:, :width, :width], gram[:, width:, width:] = own[order[pairs[:, 0]]], own[order[pairs[:, 1]]]
        for place, (first, second) in enumerate(numbers):  # views of a class: no copies of size N
            gram[place, : self.counts[first], width : width + self.counts[second]] = self._block(first, second)
        gram[:, width:, :width] = gram[:, :width, width:].mT
        return gram

    def _block(self, first: int, second: int) -> Tensor:
        left, right = (
            self.points.units[self.starts[number] : self.starts[number] + self.counts[number]]
            for number in (first, second)
        )
        return left @ right.T


def _solve_pairs(
    pair_points: _PairPoints, pairs: Tensor, signs: Tensor, lengths: Tensor, ridge: float
) -> tuple[Scalars, Centers]:
    points, width, draws = pair_points.points, pair_points.width, len(lengths)
    columns = pair_points.columns(pairs)
    column_signs = signs.repeat_interleave(width, dim=2)
    products = pair_points.products[columns].mT * column_signs
    group = torch.arange(len(pairs), device=pairs.device).repeat_interleave(draws)
    size = 2 * width
    problem = GramProblem(
        pair_points.gram(pairs),
        products.reshape(-1, size),
        column_signs.reshape(-1, size),
        group,
        width,
        largest_group=draws,
        ridge=ridge,
    )
    present = columns < len(points.units)
    norms = points.norms[columns.clamp(max=len(points.units) - 1)] * present
    class_of = torch.arange(2, device=pairs.device).repeat_interleave(width).expand(len(pairs), -1)

    def units(pair: int) -> Tensor:
        return points.units[columns[pair].clamp(max=len(points.units) - 1)] * present[pair, :, None]

    space = FeatureSpace(units, lambda row: pair_points.unit_directions[row % draws])
    all_lengths = lengths.repeat(len(pairs))
    anchors = solve_anchors(problem, norms, class_of, all_lengths, space)
    total, count = sum_of_shares(anchors, problem.group, len(pairs), size)
    segments = Segments(class_of[0, ::width], width, 2)
    mean = centers(problem.gram, segments, total / count[:, None])
    scalars, slopes = sample_scalars(problem, segments, all_lengths, anchors, mean)
    return with_effects(scalars, slopes / count[:, None], anchors, mean.shares, group), mean
