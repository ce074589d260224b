"""The joint mode: all classes in one problem, from points and draws to the scalars of every direction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor._threads import threads_for
from geomonitor.glue.anchors import Anchors, solve_anchors
from geomonitor.glue.centers import Segments, center_alignment, centers, sum_of_shares
from geomonitor.glue.chunks import DENSE_ARRAYS, budget_left, chunks, joined
from geomonitor.glue.nnls.gram_problem import GramProblem
from geomonitor.glue.nnls.solve import FeatureSpace
from geomonitor.glue.points import Points, check_features, column_layout, nonzero, prepare_points
from geomonitor.glue.ranks import Ranks, own_share
from geomonitor.glue.scalars import EFFECTS, DirectionScalars, Scalars, sample_scalars, with_effects

# Numbers of size (directions, active, active), and how many columns are active in ordinary directions.
_ACTIVE_ARRAYS, _ACTIVE_PER_CLASS, _ACTIVE_LEAST = 4, 8, 64
# Numbers of size (directions, classes, classes) that are alive at once when the scalars are computed.
_CLASS_ARRAYS = 20


def joint_scalars(
    points: Points, directions: Tensor, *, signs: Tensor, ridge: float, ranks: Ranks, memory_bytes: int
) -> DirectionScalars:
    """All classes in one problem; a rank solves a part of the directions.

    Args:
        points: the points.
        directions: ``(T, N)``.
        signs: ``(T, P)``.
        ridge: on the Gram matrix of unit columns, in the solver only.
        ranks: who solves which directions. The mean of the anchors is a sum over all ranks.
        memory_bytes: about how much the arrays of a chunk of directions may take, beside the Gram matrix.
    """
    joint = _JointPoints.of(points, ridge)
    gram, columns = joint.gram, joint.gram.shape[-1]
    most_active = min(*joint.units.shape, _ACTIVE_PER_CLASS * points.classes + _ACTIVE_LEAST)
    row_bytes = 8 * (DENSE_ARRAYS * columns + _CLASS_ARRAYS * points.classes**2 + _ACTIVE_ARRAYS * most_active**2)
    own = own_share(len(directions), ranks)
    parts_of_work = chunks(own, budget_left(memory_bytes, joint.units, gram) // row_bytes, directions.device)

    def batch(rows: Tensor) -> _Batch:
        return joint.batch(*((directions, signs) if len(rows) == len(directions) else (directions[rows], signs[rows])))

    total, count = gram.new_zeros(1, columns), gram.new_zeros(1)
    solved = []
    for rows in parts_of_work:
        current = batch(rows)
        with threads_for(columns, gram.device):
            anchors = joint.anchors(current)
        shares, good = sum_of_shares(anchors, current.problem.group, 1, columns)
        total, count = total + shares, count + good
        solved.append(anchors)
    total, count = ranks.sum(total), ranks.sum(count)
    mean = centers(gram, joint.segments, total / count[:, None])
    parts, slopes = [], gram.new_zeros(len(EFFECTS), 1, columns)
    for rows, anchors in zip(parts_of_work, solved, strict=True):
        current = current if len(parts_of_work) == 1 else batch(rows)  # several would not fit at once
        with threads_for(columns, gram.device):
            scalars, part_slopes = sample_scalars(current.problem, joint.segments, current.lengths, anchors, mean)
        parts.append(scalars)
        slopes += part_slopes
    slopes = ranks.sum(slopes) / count[:, None]
    parts = [
        with_effects(part, slopes, anchors, mean.shares, torch.zeros_like(rows))
        for part, rows, anchors in zip(parts, parts_of_work, solved, strict=True)
    ]
    gathered = Scalars(*(ranks.gather(field)[None] for field in joined(parts, gram)))
    return DirectionScalars(gathered, *center_alignment(mean.gram))


def anchor_points(features: Tensor, labels: Tensor, directions: Tensor, signs: Tensor, *, ridge: float = 0.0) -> Tensor:
    """Anchor points of the classes, joint over all of them, for each direction and dichotomy.

    Args:
        features: ``(Q, N)``, one point a row.
        labels: ``(Q,)``, integers.
        directions: ``(T, N)``.
        signs: ``(T, P)``, +1 and -1, classes in the order of sorted labels.
        ridge: as in :func:`geomonitor.manifold_geometry`.

    Returns:
        ``(T, P, N)``, float64, in the scale of the features: rows of ``S`` in
        :func:`geomonitor.manifold_geometry`. Zero if a class has no dual mass; NaN for a direction that did not
        converge.

    Raises:
        InputError: wrong shape or type, fewer than two classes, NaN or infinite features.

    Source: arXiv:2503.18114, Algorithm 2, by the solver of :mod:`.anchors`.

    >>> t, y = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[1.0, -1.0]]).double()
    >>> anchor_points(3 * torch.eye(2), torch.tensor([0, 1]), t, y)[0].tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    features, class_of = check_features(features, labels)
    with torch.inference_mode(mode=False), torch.no_grad():
        joint = _JointPoints.of(prepare_points(features, class_of), ridge)
        found = joint.anchors(joint.batch(directions.to(joint.units), signs.to(joint.units)))
        active = found.columns.clamp(min=0)
        own = torch.nn.functional.one_hot(joint.class_of[0][active], signs.shape[1]).to(joint.units)  # (T, n, P)
        size = torch.linalg.vector_norm(features, dim=1, dtype=torch.float64).max()
        anchors: Tensor = (own * found.shares[..., None]).mT @ joint.units[active] * size
    return torch.where(found.converged[:, None, None], anchors, torch.nan)


class _Batch(NamedTuple):
    problem: GramProblem
    lengths: Tensor  # (B,), of the directions
    directions: Tensor  # (B, N)


class _JointPoints(NamedTuple):
    """What the directions of the joint mode share."""

    units: Tensor  # (C, N), zero if padded
    norms: Tensor  # (1, C)
    class_of: Tensor  # (1, C)
    gram: Tensor  # (1, C, C)
    segments: Segments
    ridge: float

    @classmethod
    def of(cls, points: Points, ridge: float) -> _JointPoints:
        columns, segment = column_layout(points.class_of, points.classes)
        used = columns.clamp(min=0)
        padded = len(columns) > len(points.units)
        units = points.units[used].mul_((columns >= 0)[:, None]) if padded else points.units
        class_of = points.class_of[used][None]
        segments = Segments(class_of[0, ::segment], segment, points.classes)
        return cls(units, points.norms[used][None], class_of, (units @ units.T)[None], segments, ridge)

    def batch(self, directions: Tensor, signs: Tensor) -> _Batch:
        """The problem of some directions ``(B, N)`` and dichotomies ``(B, P)``."""
        lengths = torch.linalg.vector_norm(directions, dim=1)
        column_signs = signs.index_select(1, self.class_of[0])
        products = (directions @ self.units.T).div_(nonzero(lengths)[:, None]).mul_(column_signs)
        group = torch.zeros(len(directions), dtype=torch.int64, device=directions.device)
        problem = GramProblem(
            self.gram, products, column_signs, group, self.segments.length, self.units, ridge=self.ridge
        )
        return _Batch(problem, lengths, directions)

    def anchors(self, batch: _Batch) -> Anchors:
        def target(row: int) -> Tensor:
            return batch.directions[row] / nonzero(batch.lengths[row])

        space = FeatureSpace(lambda group: self.units, target)
        return solve_anchors(batch.problem, self.norms, self.class_of, batch.lengths, space)
