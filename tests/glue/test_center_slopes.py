"""Derivatives by the mean anchors against differences of the fields themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geomonitor.glue.anchors import solve_anchors
from geomonitor.glue.centers import Segments, center_alignment, centers, sum_of_shares
from geomonitor.glue.nnls.solve import FeatureSpace
from geomonitor.glue.scalars import EFFECTS, sample_scalars
from tests.glue.clouds import gaussian_clouds, relu_network
from tests.glue.test_anchors import unit_problem

# Central differences of this step err by its square and by rounding over it: about 1e-10 each, times the curvature.
STEP = 1e-5


@pytest.mark.parametrize("segments_per_class", [1, 2])
@pytest.mark.parametrize("case", [lambda: relu_network(4, 10, 30, 60), lambda: gaussian_clouds(3, 8, 40, 1.0)])
def test_slopes_are_what_differences_say(case, segments_per_class):
    features, labels = case()
    problem, units, targets = unit_problem(features, labels, 12)
    classes = int(labels.max()) + 1
    problem = problem._replace(segment=problem.segment // segments_per_class)
    segments = Segments(labels[:: problem.segment], problem.segment, classes)
    lengths = torch.linspace(4.0, 6.0, 12, dtype=torch.float64)
    norms, class_of = torch.ones(1, len(labels), dtype=torch.float64), labels[None]
    anchors = solve_anchors(
        problem, norms, class_of, lengths, FeatureSpace(lambda group: units, lambda row: targets[row])
    )
    left_out = torch.arange(12) != 5
    anchors = anchors._replace(converged=left_out)
    total, count = sum_of_shares(anchors, problem.group, 1, len(labels))
    assert float(count) == 11
    mean_shares = total / count[:, None]

    def fields(shares: Tensor) -> Tensor:
        scalars, _ = sample_scalars(problem, segments, lengths, anchors, centers(problem.gram, segments, shares))
        return torch.stack([getattr(scalars, name)[left_out].sum() for name in EFFECTS])

    _, slopes = sample_scalars(problem, segments, lengths, anchors, centers(problem.gram, segments, mean_shares))
    stream = torch.Generator().manual_seed(0)
    for _ in range(5):
        move = torch.randn(1, len(labels), generator=stream, dtype=torch.float64) * mean_shares.mean()
        expected = (fields(mean_shares + STEP * move) - fields(mean_shares - STEP * move)) / (2 * STEP)
        torch.testing.assert_close((slopes * move).sum(dim=(1, 2)), expected, rtol=1e-6, atol=1e-7)


def test_center_influence_is_what_differences_say():
    features, labels = relu_network(4, 10, 30, 60)
    problem, units, targets = unit_problem(features, labels, 12)
    segments = Segments(labels[::10], 10, 4)
    norms, lengths = torch.ones(1, len(labels), dtype=torch.float64), torch.ones(12, dtype=torch.float64)
    anchors = solve_anchors(
        problem, norms, labels[None], lengths, FeatureSpace(lambda group: units, lambda row: targets[row])
    )
    total, count = sum_of_shares(anchors, problem.group, 1, len(labels))
    mean_shares = total / count
    scalars, _ = sample_scalars(problem, segments, lengths, anchors, centers(problem.gram, segments, mean_shares))
    own = torch.zeros_like(problem.products).scatter_add_(1, anchors.columns.clamp(min=0), anchors.shares)
    for place, found in enumerate((scalars.center_influence, scalars.absolute_center_influence)):
        move = STEP * (own - mean_shares)
        expected = [
            (
                center_alignment(centers(problem.gram, segments, mean_shares + row).gram)[place]
                - center_alignment(centers(problem.gram, segments, mean_shares - row).gram)[place]
            )
            / (2 * STEP)
            for row in move[:, None]
        ]
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-6, atol=1e-8)
