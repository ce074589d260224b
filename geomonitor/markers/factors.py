r"""Two known attributes of the points, such as shape and colour: whether their parts in the features add up.

A cell is a combination of a value of each attribute. If the mean of every cell is the sum of a part of the first value
and a part of the second, a combination that was never seen can be read like the others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.markers.inputs import feature_matrix, require_labels
from geomonitor.markers.moments import Moments, moments_of


class LinearFactors(NamedTuple):
    """How far two attributes are linear factors of the features, 0-dim float64 tensors."""

    linear_factor_score: Tensor
    """1: the parts of the attributes add up; 0: as cell means without any structure; may leave the range by noise"""
    linear_factor_r2: Tensor
    """share of the variance of the cell means, without the noise of single points, that a sum of two parts explains"""
    factor_orthogonality: Tensor
    """mean absolute cosine between the parts of the two attributes: 0 orthogonal, 1 parallel"""


def linear_factors(features: Tensor, first: Tensor, second: Tensor) -> LinearFactors:
    r"""Linear factors of two attributes, by a two-way analysis of variance of all units together.

    With :math:`c_{ab}` the mean of a cell and dots for means over an index,

    .. math::
        S = \sum_{ab} |c_{ab} - c_{\cdot\cdot}|^2, \qquad
        I = \sum_{ab} |c_{ab} - c_{a\cdot} - c_{\cdot b} + c_{\cdot\cdot}|^2, \qquad
        R^2 = 1 - \frac{I - (A-1)(B-1) w / M}{S - (AB-1) w / M}

    with ``w`` the variance of the points within a cell, of which ``M`` points leave ``w / M`` in its mean; of cells of
    several sizes :math:`1/M` is the mean over the cells. The score is :math:`(R^2 - r_0) / (1 - r_0)`,
    :math:`r_0 = (A+B-2)/(AB-1)`: the share that two parts explain of means that are independent of each other. The
    orthogonality is the mean of :math:`|\cos(c_{a\cdot} - c_{\cdot\cdot},\, c_{\cdot b} - c_{\cdot\cdot})|`; of
    directions at random in ``N`` units it is :math:`\sqrt{2 / (\pi N)}`, and noise in small cells moves it there.

    Args:
        features: ``(Q, N)``.
        first: ``(Q,)`` integers, the first attribute of each point; at least two values.
        second: ``(Q,)`` of the second.

    Returns:
        ``LinearFactors``; scores are NaN if the cell means do not differ by more than the points within a cell leave
        in them, or if no cell has two points.

    Raises:
        InputError: an attribute with a single value, a combination without a point, mismatched lengths, NaN or
            infinite features.

    Source: the attributes as linear factors, arXiv:2602.24264, whose R^2 is of all points, so that their variance
    within the cells lowers it also in a code whose parts add up.

    >>> shape, colour = torch.tensor([0, 0, 1, 1]).repeat(2), torch.tensor([0, 1, 0, 1]).repeat(2)
    >>> x = torch.stack([shape, colour], dim=1).double() + 0.01 * torch.eye(8, 2)
    >>> round(linear_factors(x, shape, colour).linear_factor_score.item(), 3)
    1.0
    """
    x = feature_matrix(features)
    for labels in (first, second):
        require_labels(labels, len(x))
    values, places = zip(
        *(torch.unique(part.to(x.device), return_inverse=True) for part in (first, second)), strict=True
    )
    shape = (len(values[0]), len(values[1]))
    return factors_of(moments_of(x, places[0] * shape[1] + places[1], shape[0] * shape[1]), shape)


def factors_of(moments: Moments, shape: tuple[int, int]) -> LinearFactors:
    """The numbers of :func:`linear_factors` from counts, means and scatter of the cells.

    Args:
        moments: of ``A * B`` groups: the cell of values ``a`` and ``b`` is group ``a * B + b``.
        shape: ``(A, B)``.

    Raises:
        InputError: an attribute with a single value, a combination without a point.
    """
    if min(shape) < 2:
        raise InputError(f"each attribute needs two values at least; got {shape[0]} and {shape[1]}")
    if bool((moments.counts == 0).any()):
        cell = int(torch.nonzero(moments.counts == 0)[0])
        raise InputError(
            f"every combination of the attributes needs a point; the value number {cell // shape[1]} of the first has "
            f"none with the value number {cell % shape[1]} of the second"
        )
    cells = moments.means.reshape(*shape, -1)
    cells = cells - cells.mean(dim=(0, 1))
    scale = cells.abs().amax()
    scale = torch.where(scale > 0, scale, 1.0)
    cells = cells / scale  # no square overflows
    by_first, by_second = cells.mean(dim=1), cells.mean(dim=0)
    interaction = (cells - by_first[:, None] - by_second[None]).square().sum()
    free = moments.counts.sum() - moments.counts.numel()
    noise = (moments.factor / scale).square().sum() / free * (1 / moments.counts).mean()  # 0 / 0 is NaN
    inside, whole = (shape[0] - 1) * (shape[1] - 1), shape[0] * shape[1] - 1
    between = cells.square().sum() - whole * noise
    r2 = torch.where(between > 0, 1 - (interaction - inside * noise) / between, torch.nan)
    chance = (sum(shape) - 2) / whole
    cosines = _unit(by_first) @ _unit(by_second).T
    return LinearFactors((r2 - chance) / (1 - chance), r2, cosines.abs().nanmean())


def _unit(rows: Tensor) -> Tensor:
    units: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)  # NaN for a part that is zero
    return units
