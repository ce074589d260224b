"""Manifold geometry of instances: each item is a manifold, and its views are the points. No labels are needed."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import GeomonitorWarning
from geomonitor.glue.manifolds import Mode, manifold_geometry
from geomonitor.glue.result import EffectiveGeometry
from geomonitor.markers.estimate import Estimate
from geomonitor.markers.spectrum import numerical_rank

INSTANCE_PAIRS = 60
"""Pairs of instances that are drawn by default; one joint problem of 100 instances is saturated, see below."""
SATURATED = 0.9
"""Share of the rank of the features that the anchors of a joint problem take up, above which dimension and utility
are functions of that rank alone: 100 instances in 18 dimensions give ``D = rank / P``, utility 1 and no radius."""
_RANK_TOLERANCE = 1e-6
"""Of the rank that anchors can take up: directions above rounding in float32, not those that carry variance."""


class InstanceGeometry(NamedTuple):
    """Measures of instance manifolds with standard errors over directions and over pairs of instances."""

    capacity: Estimate
    dimension: Estimate
    radius: Estimate
    utility: Estimate


def instance_geometry(
    features: Tensor, instances: Tensor, *, mode: Mode = "pairwise", pairs: int | None = INSTANCE_PAIRS, **options: Any
) -> InstanceGeometry:
    r"""Capacity, dimension, radius and utility of instance manifolds.

    It is :func:`geomonitor.manifold_geometry` with instances for classes, bit by bit. A lower capacity is worse:
    instances are less separable. The dimension has no direction here: it rises when instances collapse
    onto few directions.

    Args:
        features: ``(Q, N)``, views of instances.
        instances: ``(Q,)`` integers: of which instance each row is a view.
        mode: pairs of instances, or all in one problem, which many instances saturate.
        pairs: how many are drawn by seed; None: all. Ignored in the joint mode.
        **options: directions, dichotomies, seed, ridge and ranks of :func:`geomonitor.manifold_geometry`.

    Returns:
        ``InstanceGeometry``; NaN in the joint mode if :math:`E[a] / \operatorname{rank}(Z) > 0.9`. The error adds, in
        squares, that over directions and, in the pairwise mode, the scatter over pairs by the root of their number.

    Raises:
        InputError: as :func:`geomonitor.manifold_geometry`.

    Warns:
        GeomonitorWarning: a joint problem is saturated, and what to do.

    Source: Chou et al. 2026, arXiv:2603.01879, of classes; of instances geomonitor.

    >>> x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    >>> found = instance_geometry(x, torch.arange(20) // 5, directions=50)
    >>> bool(found.capacity.value > 0 and found.capacity.standard_error > 0)
    True
    """
    drawn = pairs if mode == "pairwise" else None
    found = manifold_geometry(features, instances, mode=mode, pairs=drawn, **options)
    names = InstanceGeometry._fields
    values = [getattr(found, name) for name in names]
    errors = torch.stack([getattr(found.standard_error, name) for name in names])
    if mode == "pairwise":
        errors = (errors.square() + _scatter(found).to(errors)).sqrt()
    elif _is_saturated(found, features, len(torch.unique(instances))):
        values = [torch.full_like(value, torch.nan) for value in values]
        errors = torch.full_like(errors, torch.nan)
    return InstanceGeometry(*map(Estimate, values, errors.unbind()))


def _scatter(found: EffectiveGeometry) -> Tensor:
    """Squared standard errors over pairs, ``(4,)``: of means over pairs, each of them a mean over directions."""
    s = found.samples
    weight = s.converged.to(s.a.dtype)
    a, b, c = ((weight * each.masked_fill(~s.converged, 0.0)).sum(1) / weight.sum(1) for each in (s.a, s.b, s.c))
    values = torch.stack([2 / a, b / 2, (c / (b - c)).sqrt(), c / a])
    values = torch.where(values.isfinite(), values, torch.nan)
    count = (~values.isnan()).sum(dim=1)
    centred = values - values.nanmean(dim=1, keepdim=True)
    return centred.square().nansum(dim=1) / (count * (count - 1)).clamp(min=1)


def _is_saturated(found: EffectiveGeometry, features: Tensor, instances: int) -> bool:
    rank = numerical_rank(features, tolerance=_RANK_TOLERANCE)
    share = float(found.samples.a[found.samples.converged].mean() / rank)
    if share > SATURATED:
        warnings.warn(
            f"geometry of {instances} instances in one joint problem is NaN: their anchors take up {share:.0%} of the "
            f"{int(rank)} dimensions of the features, so it would be a function of that rank. Give fewer instances, or "
            'mode="pairwise".',
            GeomonitorWarning,
            stacklevel=3,
        )
    return share > SATURATED
