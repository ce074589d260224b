r"""Two known attributes of the points, such as shape and colour: whether their parts in the features add up.

A cell is a combination of a value of each attribute. If the mean of every cell is the sum of a part of the first value
and a part of the second, a combination that was never seen can be read like the others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.markers.estimate import Estimate
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


def factor_estimates(features: Tensor, cells: Tensor, shape: tuple[int, int]) -> dict[str, Estimate]:
    r"""Score and orthogonality of :func:`linear_factors` with standard errors over the points.

    The errors are of the jackknife by cell, :math:`\sum_c \frac{M_c - 1}{M_c} \sum_{i \in c} (v_{(i)} - \bar v_c)^2`,
    with :math:`v_{(i)}` the value without point ``i``, exactly, :math:`\bar v_c` its mean over the cell.

    Args:
        features: ``(Q, N)``.
        cells: ``(Q,)`` the number ``a * B + b`` of the cell of each point.
        shape: ``(A, B)``.

    Returns:
        By name; a standard error is NaN if a cell has a single point.

    Raises:
        InputError: as :func:`linear_factors`.

    For parts that add up exactly the error is too large, by a factor of up to :math:`\sqrt 2`.

    Source: Efron 1982; by stratum, Jones 1974.

    >>> x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).repeat(3, 1) + 0.1 * torch.randn(12, 2)
    >>> found = factor_estimates(x, torch.arange(4).repeat(3), (2, 2))["linear_factor_score"]
    >>> bool(found.standard_error > 0)
    True
    """
    x = feature_matrix(features)
    require_labels(cells, len(x))
    cells = cells.to(x.device)
    return factor_estimates_of(moments_of(x, cells, shape[0] * shape[1]), cells, shape)


def factor_estimates_of(moments: Moments, cells: Tensor, shape: tuple[int, int]) -> dict[str, Estimate]:
    """The numbers of :func:`factor_estimates` from :func:`.moments.moments_of` of the points, one row each.

    Args:
        moments: of ``A * B`` groups, whose ``factor`` is ``(Q, N)``.
        cells: ``(Q,)`` group of each point.
        shape: ``(A, B)``.

    Raises:
        InputError: as :func:`linear_factors`.
    """
    found = factors_of(moments, shape)
    scores, orthogonalities = _left_out(moments, cells, shape)
    counts = moments.counts[cells]
    return {
        "linear_factor_score": Estimate(found.linear_factor_score, _by_cell(scores, cells, counts)),
        "factor_orthogonality": Estimate(found.factor_orthogonality, _by_cell(orthogonalities, cells, counts)),
    }


def _by_cell(left_out: Tensor, cells: Tensor, counts: Tensor) -> Tensor:
    """Jackknife error of values ``(Q,)`` that each leave a point out, within the cells."""
    means = torch.zeros_like(left_out).index_add(0, cells, left_out / counts)[cells]  # rows of a cell share the number
    return ((counts - 1) / counts * (left_out - means).square()).sum().sqrt()


def _left_out(moments: Moments, cells: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Score and orthogonality without each of the points, ``(Q,)``, from how much the mean of its cell moves."""
    own = _Cells.of(moments, shape)
    rows, counts = moments.factor / own.scale, moments.counts[cells]
    moves = -rows / (counts - 1)[:, None]  # (Q, N) of the mean of the cell; 0 / 0 is NaN
    square = moves.square().sum(dim=1)
    inside, whole = (shape[0] - 1) * (shape[1] - 1), shape[0] * shape[1] - 1
    within = rows.square().sum() - rows.square().sum(dim=1) * counts / (counts - 1)
    inverse = (1 / moments.counts).mean() + (1 / (counts - 1) - 1 / counts) / len(moments.counts)
    noise = within / (len(cells) - 1 - len(moments.counts)) * inverse
    flat_cells, flat_rest = own.cells.flatten(0, 1), own.rest.flatten(0, 1)
    between = flat_cells.square().sum() + 2 * (moves * flat_cells[cells]).sum(dim=1)
    between = between + square * whole / (whole + 1) - whole * noise
    interaction = flat_rest.square().sum() + 2 * (moves * flat_rest[cells]).sum(dim=1)
    interaction = interaction + square * inside / (whole + 1) - inside * noise
    chance = (sum(shape) - 2) / whole
    r2 = torch.where(between > 0, 1 - interaction / between, torch.nan)
    return (r2 - chance) / (1 - chance), _orthogonality_left_out(own, moves, square, cells, shape)


def _orthogonality_left_out(
    own: _Cells, moves: Tensor, square: Tensor, cells: Tensor, shape: tuple[int, int]
) -> Tensor:
    # The mean of cell (a, b) moves by m: part a of the first moves by m/B - m/AB, each other part by -m/AB.
    everything = shape[0] * shape[1]
    own_first, own_second = (
        (places[:, None] == torch.arange(size, device=cells.device)).to(moves.dtype)
        for places, size in ((cells // shape[1], shape[0]), (cells % shape[1], shape[1]))
    )
    one, other = own_first / shape[1] - 1 / everything, own_second / shape[0] - 1 / everything  # (Q, A), (Q, B)
    along_first, along_second = moves @ own.first.T, moves @ own.second.T  # (Q, A), (Q, B)
    products = (
        own.first @ own.second.T + one[:, :, None] * along_second[:, None] + along_first[:, :, None] * other[:, None]
    )
    products = products + one[:, :, None] * other[:, None] * square[:, None, None]  # (Q, A, B)
    lengths = [
        (part.square().sum(dim=1) + 2 * share * along + share.square() * square[:, None]).sqrt()
        for part, share, along in ((own.first, one, along_first), (own.second, other, along_second))
    ]
    return (products.abs() / lengths[0][:, :, None] / lengths[1][:, None]).flatten(1).nanmean(dim=1)


class _Cells(NamedTuple):
    """Means of the cells around their mean, in a unit in which no square overflows."""

    cells: Tensor
    """``(A, B, N)``"""
    first: Tensor
    """``(A, N)`` parts of the first attribute"""
    second: Tensor
    """``(B, N)`` of the second"""
    rest: Tensor
    """``(A, B, N)`` what the two leave"""
    scale: Tensor
    """0-dim, the unit"""

    @classmethod
    def of(cls, moments: Moments, shape: tuple[int, int]) -> _Cells:
        """From counts, means and scatter of the cells."""
        cells = moments.means.reshape(*shape, -1)
        cells = cells - cells.mean(dim=(0, 1))
        scale = cells.abs().amax()
        scale = torch.where(scale > 0, scale, 1.0)
        cells = cells / scale
        first, second = cells.mean(dim=1), cells.mean(dim=0)
        return cls(cells, first, second, cells - first[:, None] - second[None], scale)


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
    own = _Cells.of(moments, shape)
    interaction = own.rest.square().sum()
    free = moments.counts.sum() - moments.counts.numel()
    noise = (moments.factor / own.scale).square().sum() / free * (1 / moments.counts).mean()  # 0 / 0 is NaN
    inside, whole = (shape[0] - 1) * (shape[1] - 1), shape[0] * shape[1] - 1
    between = own.cells.square().sum() - whole * noise
    r2 = torch.where(between > 0, 1 - (interaction - inside * noise) / between, torch.nan)
    chance = (sum(shape) - 2) / whole
    cosines = _unit(own.first) @ _unit(own.second).T
    return LinearFactors((r2 - chance) / (1 - chance), r2, cosines.abs().nanmean())


def _unit(rows: Tensor) -> Tensor:
    units: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)  # NaN for a part that is zero
    return units
