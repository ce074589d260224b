"""From points and draws to the scalars of every sample: joint over all classes, or pair by pair of
classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor._threads import threads_for
from geomonitor.glue.anchors import solve_anchors
from geomonitor.glue.centers import Centers, Segments, center_alignment, centers, sum_of_shares
from geomonitor.glue.nnls.gram_problem import GramProblem
from geomonitor.glue.points import Points, column_layout
from geomonitor.glue.ranks import Ranks, own_share
from geomonitor.glue.scalars import EFFECTS, Scalars, sample_scalars, with_effects

# A chunk gets at least the budget divided by this, however much the points and the Gram matrix take.
LEAST_SHARE = 8
# Numbers of size (samples, columns) that are alive at once in a round of the solver.
_DENSE_ARRAYS = 10
# Numbers of size (samples, active, active), and how many columns are active in ordinary samples.
_ACTIVE_ARRAYS, _ACTIVE_PER_CLASS, _ACTIVE_LEAST = 4, 8, 64
# Numbers of size (samples, classes, classes) that are alive at once when the scalars are computed.
_CLASS_ARRAYS = 20


class SampleScalars(NamedTuple):
    """What the measures are made of, for ``G`` problems (1 joint one, or one per pair) of ``T`` samples."""

    scalars: Scalars  # fields (G, T)
    center: Tensor  # (G,), mean cosine of centres
    absolute_center: Tensor  # (G,)


def joint_samples(
    points: Points, directions: Tensor, *, signs: Tensor, ranks: Ranks, memory_bytes: int
) -> SampleScalars:
    """All classes in one problem; a rank solves a part of the directions.

    Args:
        points: the points.
        directions: ``(T, N)``.
        signs: ``(T, P)``.
        ranks: who solves which directions. The mean of the anchors is a sum over all ranks.
        memory_bytes: about how much the arrays of a chunk of samples may take, beside the Gram matrix.
    """
    columns, segment = column_layout(points.class_of, points.classes)
    used = columns.clamp(min=0)
    padded = len(columns) > len(points.units)
    units = points.units[used].mul_((columns >= 0)[:, None]) if padded else points.units
    norms, class_of = points.norms[used][None], points.class_of[used][None]
    gram = (units @ units.T)[None]
    most_active = min(*units.shape, _ACTIVE_PER_CLASS * points.classes + _ACTIVE_LEAST)
    row_bytes = 8 * (_DENSE_ARRAYS * len(columns) + _CLASS_ARRAYS * points.classes**2 + _ACTIVE_ARRAYS * most_active**2)
    own = own_share(len(directions), ranks)
    chunks = _chunks(own, _left(memory_bytes, units, gram) // row_bytes, directions.device)

    segments = Segments(class_of[0, ::segment], segment, points.classes)

    def batch(rows: Tensor) -> _Batch:
        own = directions if len(rows) == len(directions) else directions[rows]
        lengths = torch.linalg.vector_norm(own, dim=1)
        column_signs = signs[rows].index_select(1, class_of[0])
        products = (own @ units.T).div_(_nonzero(lengths)[:, None]).mul_(column_signs)
        return _Batch(GramProblem(gram, products, column_signs, torch.zeros_like(rows), segment, units), lengths)

    total, count = gram.new_zeros(1, len(columns)), gram.new_zeros(1)
    solved = []
    for rows in chunks:
        problem, lengths = current = batch(rows)

        def coordinates(row: int, rows: Tensor = rows, lengths: Tensor = lengths) -> tuple[Tensor, Tensor]:
            return units, directions[rows[row]] / _nonzero(lengths[row])

        with threads_for(len(columns), gram.device):
            anchors = solve_anchors(problem, norms, class_of, lengths, coordinates)
        shares, good = sum_of_shares(anchors, problem.group, 1, len(columns))
        total, count = total + shares, count + good
        solved.append(anchors)
    total, count = ranks.sum(total), ranks.sum(count)
    mean = centers(gram, segments, total / count[:, None])
    parts, slopes = [], gram.new_zeros(len(EFFECTS), 1, len(columns))
    for rows, anchors in zip(chunks, solved, strict=True):
        problem, lengths = current if len(chunks) == 1 else batch(rows)  # several would not fit at once
        with threads_for(len(columns), gram.device):
            scalars, part_slopes = sample_scalars(problem, segments, lengths, anchors, mean)
        parts.append(scalars)
        slopes += part_slopes
    slopes = ranks.sum(slopes) / count[:, None]
    parts = [
        with_effects(part, slopes, anchors, mean.shares, torch.zeros_like(rows))
        for part, rows, anchors in zip(parts, chunks, solved, strict=True)
    ]
    gathered = Scalars(*(ranks.gather(field)[None] for field in _joined(parts, gram)))
    return SampleScalars(gathered, *center_alignment(mean.gram))


class _Batch(NamedTuple):
    problem: GramProblem
    lengths: Tensor  # (B,), of the directions


def pairwise_samples(
    points: Points, directions: Tensor, *, signs: Tensor, pairs: Tensor, ranks: Ranks, memory_bytes: int
) -> SampleScalars:
    """Every pair of classes a problem of its own, all with the same directions; a rank solves a part of the
    pairs.

    Args:
        points: the points.
        directions: ``(T, N)``.
        signs: ``(pairs, T, 2)``.
        pairs: ``(pairs, 2)``, class numbers.
        ranks: who solves which pairs.
        memory_bytes: about how much the arrays of a chunk of pairs may take.
    """
    lengths = torch.linalg.vector_norm(directions, dim=1)
    unit_directions = directions / _nonzero(lengths)[:, None]
    pair_points = _PairPoints.of(points, unit_directions)
    samples, width = len(directions), pair_points.width
    pair_bytes = 8 * 2 * width * (2 * width + _DENSE_ARRAYS * samples)
    size = _left(memory_bytes, points.units, pair_points.products) // pair_bytes
    parts, center_parts = [], []
    for rows in _chunks(own_share(len(pairs), ranks), size, directions.device):
        with threads_for(2 * width, directions.device):
            scalars, mean = _solve_pairs(pair_points, pairs[rows], signs[rows], lengths)
        parts.append(scalars)
        center_parts.append(torch.stack(center_alignment(mean.gram), dim=1))
    joined = [field.view(-1, samples) for field in _joined(parts, points.units)]
    center = ranks.gather(torch.cat(center_parts) if center_parts else points.units.new_zeros(0, 2))
    return SampleScalars(Scalars(*(ranks.gather(field) for field in joined)), center[:, 0], center[:, 1])


class _PairPoints(NamedTuple):
    """What the pairs share: products with the directions, and where the points of a class are."""

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


def _solve_pairs(pair_points: _PairPoints, pairs: Tensor, signs: Tensor, lengths: Tensor) -> tuple[Scalars, Centers]:
    points, width, samples = pair_points.points, pair_points.width, len(lengths)
    columns = pair_points.columns(pairs)
    column_signs = signs.repeat_interleave(width, dim=2)
    products = pair_points.products[columns].mT * column_signs
    group = torch.arange(len(pairs), device=pairs.device).repeat_interleave(samples)
    size = 2 * width
    problem = GramProblem(
        pair_points.gram(pairs),
        products.reshape(-1, size),
        column_signs.reshape(-1, size),
        group,
        width,
        largest_group=samples,
    )
    present = columns < len(points.units)
    norms = points.norms[columns.clamp(max=len(points.units) - 1)] * present
    class_of = torch.arange(2, device=pairs.device).repeat_interleave(width).expand(len(pairs), -1)

    def coordinates(row: int) -> tuple[Tensor, Tensor]:
        own = columns[row // samples]
        units = points.units[own.clamp(max=len(points.units) - 1)] * present[row // samples, :, None]
        return units, pair_points.unit_directions[row % samples]

    all_lengths = lengths.repeat(len(pairs))
    anchors = solve_anchors(problem, norms, class_of, all_lengths, coordinates)
    total, count = sum_of_shares(anchors, problem.group, len(pairs), size)
    segments = Segments(class_of[0, ::width], width, 2)
    mean = centers(problem.gram, segments, total / count[:, None])
    scalars, slopes = sample_scalars(problem, segments, all_lengths, anchors, mean)
    return with_effects(scalars, slopes / count[:, None], anchors, mean.shares, group), mean


def _left(memory_bytes: int, *taken: Tensor) -> int:
    """What the budget leaves for a chunk; a part of it always, so that chunks do not become absurdly
    small.
    """
    left = memory_bytes - sum(tensor.numel() * tensor.element_size() for tensor in taken)
    return max(left, memory_bytes // LEAST_SHARE)


def _chunks(rows: range, size: int, device: torch.device) -> list[Tensor]:
    """Chunks of about equal length, of at most ``size`` rows."""
    if not len(rows):
        return []
    numbers = torch.arange(rows.start, rows.stop, device=device)
    return list(torch.tensor_split(numbers, -(-len(rows) // max(1, size))))


def _joined(parts: list[Scalars], like: Tensor) -> Scalars:
    if not parts:  # an idle rank still takes part in the gathering
        empty = like.new_zeros(0)
        return Scalars(*([empty] * len(Scalars._fields)))._replace(converged=empty.bool())
    return parts[0] if len(parts) == 1 else Scalars(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _nonzero(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, lengths, 1.0)
