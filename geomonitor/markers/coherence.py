r"""Coherence of the gradients of single points: how far a step for one point is a step for the others.

:math:`\alpha = E[g\cdot g'] / E[g\cdot g]` of the loss gradients of two points: 1 if all are equal, 0 if they have no
direction in common. For a linear layer at the end of the network the gradients are known without a backward pass:
:math:`g_i = d_i a_i^\top`, with :math:`d_i` the gradient of the loss with respect to the logits and :math:`a_i` the
input of the layer, a 1 added for the bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.markers.estimate import Estimate, error_of
from geomonitor.markers.inputs import feature_matrix, on_float64_device, require_labels, require_matrix

COHERENCE = "coherence"
NETWORK_COHERENCE = "network_coherence"
"""Of all parameters that are trained; it belongs to a whole measurement, not to a layer."""

FITTED = 1e-12
"""Mean square of the residuals below which they are rounding of the logits, and no gradient is left."""


def coherence(features: Tensor, logits: Tensor, labels: Tensor, *, bias: bool = True) -> Estimate:
    r"""Coherence of the gradients of the cross-entropy with respect to the last linear layer.

    Unbiased: with ``c`` the m-coherence :math:`|\sum g|^2 / \sum |g|^2` of ``Q`` points, :math:`(c - 1) / (Q - 1)`.

    Args:
        features: ``(Q, N)`` inputs of the layer.
        logits: ``(Q, C)`` its outputs for the same points; ``-inf`` is a class that cannot be.
        labels: ``(Q,)`` integers in ``0 .. C - 1``.
        bias: whether the layer has one.

    Returns:
        Value, at most 1 and 0 on average for gradients without a common direction, and its standard error over
        points; NaN for fewer than two points, or if every point is fitted to the rounding of its logits.

    Raises:
        InputError: wrong shapes, labels out of range, NaN or infinite features.

    Source: Chatterjee and Zielinski 2022, arXiv:2203.10036.

    >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    >>> round(coherence(x, torch.zeros(3, 2), y, bias=False).value.item(), 6)  # 1 of 3 pairs is equal, 2 orthogonal
    0.333333
    """
    require_matrix(logits)
    require_labels(labels, len(logits))
    if not len(logits) or not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
        raise InputError(
            f"expected points with logits (Q, C) and labels in 0 .. C - 1; got logits {tuple(logits.shape)} and "
            f"{f'labels from {int(labels.min())} to {int(labels.max())}' if len(labels) else 'no labels'}"
        )
    return coherence_of(features, residuals_of(logits, labels), bias=bias)


def residuals_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each point's cross-entropy with respect to its logits: softmax less the class, ``(B, C)`` float64.

    Args:
        logits: ``(B, C)``.
        labels: ``(B,)`` in ``0 .. C - 1``.

    >>> residuals_of(torch.zeros(1, 2), torch.tensor([1]))
    tensor([[ 0.5000, -0.5000]], dtype=torch.float64)
    """
    z = on_float64_device(logits.detach()).to(torch.float64)
    own = labels.to(z.device)[:, None]
    # For the class itself p - 1 is minus the others' sum, which keeps its digits where p rounds to 1.
    others = z.softmax(dim=1).scatter(1, own, 0.0)
    return others.scatter(1, own, -others.sum(dim=1, keepdim=True))


def coherence_of(features: Tensor, residuals: Tensor, *, bias: bool = True, groups: Tensor | None = None) -> Estimate:
    """Coherence for any loss, from its gradients with respect to the outputs of the last linear layer.

    Args:
        features: ``(Q, N)`` inputs of the layer.
        residuals: ``(Q, C)`` gradient of each point's loss with respect to its outputs.
        bias: whether the layer has one.
        groups: ``(Q,)`` numbers of groups of points that are not independent, such as tokens of a sequence.

    Returns:
        As :func:`coherence`.

    Raises:
        InputError: wrong shapes, NaN or infinite entries.
    """
    a, d = feature_matrix(features), feature_matrix(residuals)
    if len(a) != len(d):
        raise InputError(f"features and residuals must have one row for each point; got {len(a)} and {len(d)} rows")
    if groups is not None:
        require_labels(groups, len(a))
    a = torch.cat([a, a.new_ones(len(a), 1)], dim=1) if _options.flag("bias", bias) else a
    a = a / a.abs().amax().clamp(min=torch.finfo(a.dtype).tiny)  # no square overflows
    d = d.to(a.device)
    weights, squares = a.square().sum(dim=1), d.square().sum(dim=1)
    if bool((weights * squares).sum() <= FITTED * weights.sum()):
        return Estimate(a.new_tensor(torch.nan), a.new_tensor(torch.nan))
    (points, outputs), width = d.shape, a.shape[1]
    if points * (outputs + width) < outputs * width:  # language models: the products of points are fewer
        dots = ((d @ d.T) * (a @ a.T)).sum(dim=1)
    else:
        dots = ((a @ (d.T @ a).T) * d).sum(dim=1)
    return coherence_of_products(dots, weights * squares, groups)


def coherence_of_products(dots: Tensor, squares: Tensor, groups: Tensor | None = None) -> Estimate:
    r"""Coherence from the products of each of ``Q`` gradients with the sum of all, and with itself.

    Args:
        dots: ``(Q,)`` :math:`g_i \cdot \sum_j g_j`.
        squares: ``(Q,)`` :math:`|g_i|^2`.
        groups: as in :func:`coherence_of`.

    Returns:
        As :func:`coherence`; the error by the delta method for a ratio of means.

    >>> coherence_of_products(torch.tensor([1.0, 1.0]).double(), torch.tensor([1.0, 1.0]).double()).value.item()
    0.0
    """
    points = len(dots)
    mean_square = squares.mean()
    if points < 2 or not bool(mean_square > 0):
        return Estimate(dots.new_tensor(torch.nan), dots.new_tensor(torch.nan))
    value = (dots.sum() / squares.sum() - 1) / (points - 1)
    along, mean_along = dots / points, dots.mean() / points
    influence = (2 * (along - mean_along) - value * (squares - mean_square)) / mean_square
    return Estimate(value, error_of(influence / points, groups))
