"""The markers of a layer: by the geometry, by a formula of its features, or by one of the logits."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomonitor._distributed import ALL_PROCESSES, Processes
from geomonitor.features.linear_head import Head
from geomonitor.glue.estimates import Measures
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.ranks import ProcessGroup
from geomonitor.markers.coherence import coherence_of
from geomonitor.markers.factors import factor_estimates_of
from geomonitor.markers.formulas import ESTIMATES, feature_markers
from geomonitor.markers.layer_points import LayerPoints
from geomonitor.markers.logits import LOGIT_FORMULAS
from geomonitor.markers.rows import FACTORS
from geomonitor.measure.resolution import VARIATION_MARKERS, variation_is_rounding
from geomonitor.probe.shifts import SHIFT_MARKER


class LayerMarkers(NamedTuple):
    """The markers of one layer."""

    values: dict[str, tuple[float, float]]
    """marker and standard error (NaN if it has none) by name"""
    influence: Tensor | None
    """``(T, 10)``: what each direction adds to the errors of the geometry; None if no marker of it was requested"""
    hidden: tuple[str, ...]
    """markers that are NaN because the rounding of the layer's dtype hides what they measure"""


def compute_markers(
    features: Tensor,
    classes: Tensor,
    markers: Collection[str],
    *,
    head: Head,
    reference: Tensor | None,
    geometry_options: Mapping[str, Any],
    dtype: str = "float32",
    groups: Tensor | None = None,
    attributes: tuple[int, int] | None = None,
    processes: Processes = ALL_PROCESSES,
) -> LayerMarkers:
    """The markers of one layer among ``markers``, and no others.

    Args:
        features: ``(Q, N)``, finite; with several processes, the same in each: the geometry is split over them.
        classes: ``(Q,)`` class numbers, two classes or more.
        markers: names; those of the logits are passed over.
        head: the linear head that the layer feeds, if it does.
        reference: ``(Q, K)`` features of the same points, to which the drift is measured.
        geometry_options: of :func:`geomonitor.manifold_geometry`.
        dtype: in which the layer computed; float32 is the finest that counts.
        groups: ``(Q,)`` which points belong together, for standard errors over points; None: each is independent.
        attributes: numbers of values ``(A, B)`` of two attributes, of which class ``a * B + b`` has values a and b.
        processes: which share the work.

    Raises:
        InputError: as the functions of the markers.

    >>> x = torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 1.0], [1.0, 4.0]])
    >>> options = {"head": Head(), "reference": None, "geometry_options": {}}
    >>> compute_markers(x[:2], torch.tensor([0, 1]), ["mean_norm"], **options).values
    {'mean_norm': (3.5, nan)}
    """
    points = LayerPoints(features, classes, weight=head.weight, bias=head.bias, reference=reference)
    plain = [name for name in markers if name not in ESTIMATES]
    values = {name: (float(value), math.nan) for name, value in feature_markers(points, plain).items()}
    estimates = {name: ESTIMATES[name](points.features, groups) for name in markers if name in ESTIMATES}
    factors = [name for name in markers if name in FACTORS]
    if factors and attributes is not None:
        found = factor_estimates_of(points.moments, points.class_of, attributes)
        estimates |= {name: found[name] for name in factors}
    values |= {name: (float(found.value), float(found.standard_error)) for name, found in estimates.items()}
    hidden = tuple(name for name in values if name in VARIATION_MARKERS)
    hidden = hidden if hidden and variation_is_rounding(points, dtype) else ()
    values |= dict.fromkeys(hidden, (math.nan, math.nan))
    if not set(markers) & set(Measures._fields):
        return LayerMarkers(values, None, hidden)
    ranks = ProcessGroup(processes.group) if processes.size > 1 else None
    half = getattr(torch, dtype) if dtype in ("bfloat16", "float16") else features.dtype  # pooled rows are float32
    geometry = manifold_geometry(features.to(half), classes, ranks=ranks, **geometry_options)
    for name, value, error in zip(Measures._fields, geometry.measures, geometry.standard_error, strict=True):
        if name in markers:
            values[name] = (float(value), float(error))
    return LayerMarkers(values, geometry.samples.influence.cpu(), hidden)


def compute_logit_markers(statistics: Mapping[str, Tensor], markers: Collection[str]) -> dict[str, tuple[float, float]]:
    """The markers of the logits among ``markers``, and the accuracy under each shift.

    Args:
        statistics: ``(Q, 5)`` from :func:`geomonitor.markers.logits.point_statistics` by name of the input shift,
            ``""`` for the inputs as they are; a name that is not there has no markers.
        markers: names; those of features are passed over.

    >>> import torch
    >>> compute_logit_markers({"": torch.tensor([[1.0, 0.9, 0.3, -2.0, 1.0], [0, 0.5, 0.7, -1.0, 0]])}, ["accuracy"])
    {'accuracy': (0.5, nan)}
    """
    asked = [name for name in markers if name in LOGIT_FORMULAS and "" in statistics]
    values = {name: LOGIT_FORMULAS[name](statistics[""].T) for name in asked}
    values |= {SHIFT_MARKER + name: LOGIT_FORMULAS["accuracy"](rows.T) for name, rows in statistics.items() if name}
    return {name: (float(value), math.nan) for name, value in values.items()}


def coherence_in_head(
    features: Tensor, residuals: Tensor, head: Head, *, groups: Tensor | None = None
) -> tuple[float, float]:
    """Coherence of the gradients in the linear head that a layer feeds, and its standard error.

    Args:
        features: ``(Q, N)``, finite.
        residuals: ``(Q, C)`` of the same points, from :func:`geomonitor.markers.coherence.residuals_of`.
        head: NaN without one, or if a residual is not finite.
        groups: as in :func:`compute_markers`.

    >>> import torch
    >>> coherence_in_head(torch.eye(2), torch.eye(2), Head())
    (nan, nan)
    """
    if head.weight is None or not bool(residuals.isfinite().all()):
        return math.nan, math.nan
    found = coherence_of(features, residuals, bias=head.bias is not None, groups=groups)
    return float(found.value), float(found.standard_error)
