"""The anchor points of single samples, to look at: :mod:`.samples` keeps only the scalars that are made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from geomonitor.glue.anchors import solve_anchors
from geomonitor.glue.nnls.gram_problem import GramProblem
from geomonitor.glue.points import check_features, column_layout, prepare_points


def anchor_points(features: Tensor, labels: Tensor, directions: Tensor, signs: Tensor) -> Tensor:
    """Anchor points of the classes, joint over all of them, for each direction and dichotomy.

    Args:
        features: ``(Q, N)``, one point a row.
        labels: ``(Q,)``, integers.
        directions: ``(T, N)``.
        signs: ``(T, P)``, +1 and -1, classes in the order of sorted labels.

    Returns:
        ``(T, P, N)``, float64, in the scale of the features: rows of ``S`` in
        :func:`geomonitor.manifold_geometry`. Zero where a class has no dual mass; NaN for a sample that did not
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
        points = prepare_points(features, class_of)
        columns, segment = column_layout(points.class_of, points.classes)
        used = columns.clamp(min=0)
        units = points.units[used] * (columns >= 0)[:, None]
        of_column = points.class_of[used][None]
        lengths = torch.linalg.vector_norm(directions, dim=1)
        targets = (directions / torch.where(lengths > 0, lengths, 1.0)[:, None]).to(units)
        column_signs = signs.to(units)[:, of_column[0]]
        group = torch.zeros(len(targets), dtype=torch.int64, device=units.device)
        problem = GramProblem(
            (units @ units.T)[None], targets @ units.T * column_signs, column_signs, group, segment, units
        )
        found = solve_anchors(
            problem, points.norms[used][None], of_column, lengths.to(units), lambda row: (units, targets[row])
        )
        active = found.columns.clamp(min=0)
        own = torch.nn.functional.one_hot(of_column[0][active], points.classes).to(units)  # (T, n, P)
        size = torch.linalg.vector_norm(features, dim=1, dtype=torch.float64).max()
        anchors: Tensor = (own * found.shares[..., None]).mT @ units[active] * size
    return torch.where(found.converged[:, None, None], anchors, torch.nan)
