"""Measures as functions of means over directions, their standard errors, and errors of differences."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.glue.scalars import EFFECTS, DirectionScalars, Scalars

# If this part of E[b] or less is left of E[b - c], only rounding is left of the centres: the radius is undefined.
NO_CENTERS = 1e-11
# If E[c] and E[a] agree to this part, they are equal (the axes take up every direction): the rest is rounding, which
# would make a standard error of 1e-16.
ALL_TAKEN_UP = 1e-11


class Measures(NamedTuple):
    """One number per measure; 0-dim float64 tensors."""

    capacity: Tensor
    dimension: Tensor
    radius: Tensor
    utility: Tensor
    center_alignment: Tensor
    axis_alignment: Tensor
    center_axis_alignment: Tensor
    absolute_center_alignment: Tensor
    absolute_axis_alignment: Tensor
    absolute_center_axis_alignment: Tensor


class Estimates(NamedTuple):
    """Measures and what each direction adds to their error."""

    values: Tensor  # (10,), in the order of Measures
    influence: Tensor  # (T, 10), of mean zero: the error of a measure is about the mean of its influences
    undefined_problems: Tensor  # (10,), int64: in how many problems (pairs) the measure is undefined


def estimate(samples: DirectionScalars, classes: int) -> Estimates:
    """Measures of every problem, averaged over the problems in which they are defined.

    Args:
        samples: ``G`` problems of ``T`` directions.
        classes: classes in a problem.
    """
    values, influence = _per_problem(samples, classes)  # (G, 10), (G, T, 10)
    defined = values.isfinite()
    count = defined.sum(dim=0)
    mean = torch.where(defined, values, 0.0).sum(dim=0) / count
    mean_influence = torch.where(defined[:, None], influence, 0.0).sum(dim=0) / count
    return Estimates(mean, mean_influence, (~defined).sum(dim=0))


def standard_errors(influence: Tensor) -> Tensor:
    """Standard errors of means over ``T`` directions from influences ``(T, ...)``; their mean is zero."""
    count = len(influence)
    return (influence.square().sum(dim=0) / (count * (count - 1))).sqrt()


def _per_problem(samples: DirectionScalars, classes: int) -> tuple[Tensor, Tensor]:
    s = samples.scalars
    weight = s.converged.to(s.a.dtype)
    weight = weight / weight.mean(dim=1, keepdim=True)  # (G, T), mean one, zero for directions that are left out
    means = _centred(s, weight)
    a, b, c = means["a"], means["b"], means["c"]
    nothing = a.mean == 0  # no point is ever active: all features are zero, or none was ever on the wrong side
    mean_a = a.mean.masked_fill(nothing, float("nan"))
    mean_b, mean_c = b.mean.masked_fill(nothing, float("nan")), c.mean
    rest = (mean_b - mean_c).where(mean_b - mean_c > NO_CENTERS * mean_b, torch.full_like(mean_b, float("nan")))
    radius = (mean_c / rest).sqrt()
    taken_up = (mean_c - mean_a).abs() <= ALL_TAKEN_UP * mean_a
    utility = (mean_c / mean_a).masked_fill(taken_up, 1.0)
    values = [classes / mean_a, mean_b / classes, radius, utility]
    influence = [
        -classes / mean_a.square()[:, None] * a.deviation,
        b.deviation / classes,
        (c.deviation / rest[:, None] - (mean_c / rest.square())[:, None] * (b.deviation - c.deviation))
        / (2 * radius[:, None]),
        (c.deviation / mean_a[:, None] - (mean_c / mean_a.square())[:, None] * a.deviation).masked_fill(
            taken_up[:, None], 0.0
        ),
    ]
    for kind, center in (("", samples.center), ("absolute_", samples.absolute_center)):
        values.append(center)
        influence.append(means[f"{kind}center_influence"].deviation)
        for name in ("axis", "center_axis"):
            value, effect = _ratio(means[kind + name], means[f"{name}_pairs"])
            values.append(value)
            influence.append(effect)
    return torch.stack(values, dim=1), torch.stack(influence, dim=2)


class _Mean(NamedTuple):
    mean: Tensor  # (G,)
    deviation: Tensor  # (G, T), weighted: its mean is zero


_OTHERS = ("a", "axis_pairs", "center_axis_pairs", "center_influence", "absolute_center_influence")


def _centred(scalars: Scalars, weight: Tensor) -> dict[str, _Mean]:
    """Means of the fields, and deviations of each field with the effect that it has through the mean anchors."""
    fields = torch.stack([getattr(scalars, name) for name in (*EFFECTS, *_OTHERS)])
    effects = torch.stack([getattr(scalars, f"{name}_effect") for name in EFFECTS])
    left_out = weight == 0
    fields = fields.masked_fill(left_out, 0.0)
    means = (fields * weight).mean(dim=2)
    fields[: len(EFFECTS)] += effects.masked_fill_(left_out, 0.0)
    deviations = (fields - (fields * weight).mean(dim=2, keepdim=True)) * weight
    return dict(zip((*EFFECTS, *_OTHERS), map(_Mean, means, deviations), strict=True))


def _ratio(numerator: _Mean, denominator: _Mean) -> tuple[Tensor, Tensor]:
    value = numerator.mean / denominator.mean
    deviation = numerator.deviation - value[:, None] * denominator.deviation
    return value, deviation / denominator.mean[:, None]
