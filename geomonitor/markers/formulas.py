"""START HERE for a number: the table of which function gives which marker of a layer's points.

The markers of the manifold geometry are in :mod:`geomonitor.glue.manifolds`, those of logits in :mod:`.logits`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import MappingProxyType

import torch
from torch import Tensor

from geomonitor.markers.activity import (
    active_fraction,
    dead_units,
    mean_covariance,
    mean_norm,
    norm_variation,
    top_channel_share,
)
from geomonitor.markers.collapse import NeuralCollapse, collapse_of, disagreement_of
from geomonitor.markers.distances import angle, feature_distance, within_class_distance
from geomonitor.markers.drift import drift_of
from geomonitor.markers.estimate import Estimate
from geomonitor.markers.layer_points import LayerPoints
from geomonitor.markers.neighbors import intrinsic_dimension_of
from geomonitor.markers.singular_values import Spectrum
from geomonitor.markers.spectrum import SPECTRUM_FORMULAS
from geomonitor.markers.unit_vectors import centred_mean_cosine, mean_cosine, uniformity

PER_CLASS = "_per_class"
"""Suffix of a marker of the spectrum that is computed class by class and averaged."""


def class_mean(formula: Callable[[Spectrum], Tensor], points: LayerPoints) -> Tensor:
    """A formula of the spectrum on the points of one class, averaged over the classes in which it is defined.

    Source: Chou et al. 2026 (``*_avg`` in its tables).

    >>> x = torch.cat([torch.eye(3), torch.ones(3, 3) - torch.eye(3)])
    >>> points = LayerPoints(x, torch.tensor([0, 0, 0, 1, 1, 1]))
    >>> round(class_mean(SPECTRUM_FORMULAS["participation_ratio"], points).item(), 6)
    2.0
    """
    return torch.stack([formula(spectrum) for spectrum in points.class_spectra]).nanmean()


ESTIMATES: MappingProxyType[str, Callable[[Tensor, Tensor | None], Estimate]] = MappingProxyType(
    {
        "uniformity": uniformity,
        "mean_cosine": mean_cosine,
        "centred_mean_cosine": centred_mean_cosine,
        "top_channel_share": top_channel_share,
    }
)
"""Functions of features, and of groups of points, by name of the marker, that also give its standard error."""

FEATURE_FORMULAS: MappingProxyType[str, Callable[[LayerPoints], Tensor]] = MappingProxyType(
    {name: lambda p, f=formula: f(p.features, None).value for name, formula in ESTIMATES.items()}
    | {name: lambda p, f=formula: f(p.spectrum) for name, formula in SPECTRUM_FORMULAS.items()}
    | {name + PER_CLASS: lambda p, f=formula: class_mean(f, p) for name, formula in SPECTRUM_FORMULAS.items()}
    | {
        "nc4": lambda p: p.undefined if p.weight is None else disagreement_of(p.features, p.moments, p.weight, p.bias),
        "feature_distance": lambda p: feature_distance(p.pairs),
        "within_class_distance": lambda p: within_class_distance(p.pairs, p.class_of),
        "angle": lambda p: angle(p.features),
        "active_fraction": lambda p: active_fraction(p.features),
        "dead_units": lambda p: dead_units(p.features),
        "mean_covariance": lambda p: mean_covariance(p.spectrum),
        "mean_norm": lambda p: mean_norm(p.features),
        "norm_variation": lambda p: norm_variation(p.features),
        "intrinsic_dimension": lambda p: intrinsic_dimension_of(p.pairs, len(p.features)),
        "drift": lambda p: p.undefined if p.reference is None else drift_of(p.spectrum, p.reference),
    }
)
"""Formula by name of the marker; nc1 to nc3 and cdnv come together from :func:`.collapse.collapse_of`."""


def feature_markers(points: LayerPoints, markers: Collection[str]) -> dict[str, Tensor]:
    """The markers that are functions of features and labels, by name: exactly the requested ones.

    Args:
        points: of one layer.
        markers: names, of ``FEATURE_FORMULAS`` and of :class:`.collapse.NeuralCollapse`.

    Returns:
        0-dim float64 each; NaN if a marker is undefined, or needs a head or a reference that is missing.

    Raises:
        InputError: mismatched shapes.

    >>> points = LayerPoints(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1]))
    >>> feature_markers(points, ["mean_norm", "angle"])["mean_norm"].item()
    3.5
    """
    values = {name: FEATURE_FORMULAS[name](points) for name in markers if name in FEATURE_FORMULAS}
    asked = [name for name in markers if name in NeuralCollapse._fields]
    if asked:
        collapse = collapse_of(points.moments, points.weight)._asdict()
        values |= {name: collapse[name] for name in asked}
    return values
