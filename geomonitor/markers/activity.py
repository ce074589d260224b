r"""Markers of activity: how many entries and units are active at all, how units vary together, their length."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.markers.inputs import feature_matrix

ACTIVE_ABOVE = 1e-6
"""Magnitude above which an entry counts as active (Chou et al. 2026); it has the unit of the features."""

COVARIANCE_UNITS = 4096
"""Units taken for the mean covariance: a wider layer is thinned out evenly, since the cost is ``Q N^2``."""

BLOCK = 512
"""Rows of the covariance held at once."""


class Activity(NamedTuple):
    """Markers of activity, each a 0-dim float64 tensor."""

    active_fraction: Tensor
    """share of entries with ``|x| > 1e-6``; the paper calls it sparsity"""
    dead_units: Tensor
    """share of units without an active entry at any point"""
    mean_covariance: Tensor
    """mean absolute covariance of two different units; NaN for one unit"""
    mean_norm: Tensor
    """mean Euclidean norm of a feature vector"""
    norm_variation: Tensor
    """standard deviation of the norms over their mean; NaN where all features are zero"""


def activity(features: Tensor) -> Activity:
    r"""Markers of activity of a feature matrix.

    .. math::
        \mathrm{active\_fraction} = \operatorname{mean}_{q,n} [|z_{qn}| > 10^{-6}], \qquad
        \mathrm{dead\_units} = \operatorname{mean}_n [\max_q |z_{qn}| \le 10^{-6}], \qquad
        \mathrm{mean\_covariance} = \operatorname{mean}_{n \ne k} \bigl| \operatorname{cov}(z_n, z_k) \bigr|

    The covariance is divided by ``Q``, as everywhere in this package.

    A unit is dead by its largest *magnitude*: behind a ReLU that is its largest activation, and behind a tanh, GELU or
    nothing a unit that is always negative is not dead.

    Args:
        features: ``(Q, N)``. Beyond 4096 units the mean covariance is that of 4096 of them, evenly spaced.

    Returns:
        ``Activity``; shares in ``[0, 1]``, ``mean_norm`` in units of the features, ``mean_covariance`` in their square.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    Source: Chou et al. 2026 for the active fraction and the mean covariance.

    >>> [round(v.item(), 3) for v in activity(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 5.0]]))]
    [0.5, 0.333, 0.25, 5.0, 0.0]
    """
    x = feature_matrix(features)
    active = x.abs() > ACTIVE_ABOVE
    norms = torch.linalg.vector_norm(x, dim=1)
    return Activity(
        active.to(torch.float64).mean(),
        (~active.any(dim=0)).to(torch.float64).mean(),
        _mean_covariance(x[:, :: -(-x.shape[1] // COVARIANCE_UNITS)]),
        norms.mean(),
        norms.std(correction=0) / norms.mean(),
    )


def _mean_covariance(x: Tensor) -> Tensor:
    points, units = x.shape
    x = x - x.mean(dim=0)
    x = x - x.mean(dim=0)  # the rounding of the first mean
    total = x.new_zeros(())
    for rows in torch.split(x.T, BLOCK):
        total = total + (rows @ x).abs().sum()
    variances = x.square().sum()
    if units < 2:
        return x.new_tensor(torch.nan)
    return (total - variances).clamp(min=0) / (points * units * (units - 1))
