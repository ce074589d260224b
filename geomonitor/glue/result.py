"""What a measurement returns: measures, their errors, the scalars behind them, and differences of two results."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.glue.estimates import Estimates, Measures, standard_errors
from geomonitor.glue.scalars import DirectionScalars


class Protocol(NamedTuple):
    """What two results must share for their difference to mean anything."""

    mode: str
    points: str
    feature_dimension: int
    directions: str
    dichotomies: str
    pairs: str
    ridge: float


class GeometrySamples(NamedTuple):
    """The scalars of every direction: ``(T,)`` for the joint mode, ``(pairs, T)`` for the pairwise one."""

    a: Tensor
    b: Tensor
    c: Tensor
    converged: Tensor
    influence: Tensor  # (T, 10), what each direction adds to the error of each measure
    protocol: Protocol


class GeometryDifference(NamedTuple):
    """Change of every measure between two results with common draws."""

    value: Measures
    standard_error: Measures
    z: Measures


class EffectiveGeometry(NamedTuple):
    """Capacity, effective geometry and alignments; 0-dim float64 tensors. NaN: undefined."""

    capacity: Tensor
    """classes per feature dimension that can be separated: P / E[a]"""
    dimension: Tensor
    """effective dimension of the class manifolds: E[b] / P"""
    radius: Tensor
    """effective radius against the centres: sqrt(E[c] / E[b - c])"""
    utility: Tensor
    """E[c] / E[a]: 0 or more, and at most about 1. Few directions, or so few feature dimensions that all are taken up,
    can give more (1.14 was seen for N = 2), because c leaves out the cross terms of centres and axes that a has"""
    center_alignment: Tensor
    axis_alignment: Tensor
    center_axis_alignment: Tensor
    absolute_center_alignment: Tensor
    absolute_axis_alignment: Tensor
    absolute_center_axis_alignment: Tensor
    standard_error: Measures
    """over the sampled directions, by the delta method"""
    samples: GeometrySamples
    max_kkt_residual: Tensor
    """largest violation of the optimality conditions, for points and directions of length one"""
    converged: Tensor
    """bool: every direction was solved: a residual of at most 1e-8, or, if features of low rank were rounded to float32
    and the smallest weights are taken, 1e-6 (those weights solve the problem of the features before rounding)"""
    excluded: Tensor
    """int64: number of directions that were not solved; no mean includes them"""

    def __repr__(self) -> str:
        names = ("capacity", "dimension", "radius", "utility")
        shown = (f"{name}={getattr(self, name):.4g}±{getattr(self.standard_error, name):.2g}" for name in names)
        return f"EffectiveGeometry({', '.join(shown)}, {len(self.samples[0])} directions)"

    @property
    def measures(self) -> Measures:
        """The ten measures alone."""
        return Measures(**{name: getattr(self, name) for name in Measures._fields})

    def difference(self, earlier: EffectiveGeometry) -> GeometryDifference:
        """Change since an earlier result, with the standard error over common directions.

        Both results must come from the same draws (same seed, ``N``, ``T``, classes, points per class, mode): what the
        draws have in common then cancels.

        Raises:
            InputError: the two were measured under different protocols.
        """
        for name, here, there in zip(Protocol._fields, self.samples.protocol, earlier.samples.protocol, strict=True):
            if here != there:
                raise InputError(
                    f"a difference needs results of one protocol, found {name} = {here} and {there}: "
                    "measure both with the same seed, directions, dichotomies, mode and points per class."
                )
        value = torch.stack(self.measures) - torch.stack(earlier.measures)
        error = standard_errors(self.samples.influence - earlier.samples.influence)
        return GeometryDifference(_measures(value), _measures(error), _measures(value / error))


# Standard errors by which the capacity moves if directions near the rounding are left out. On spectra that decay
# through the rounding of bfloat16 it moved by 5 to 29 (exact features give other measures there); elsewhere by at most
# 3.4.
DECIDED_BY_ROUNDING = 4.0


def depends_on_rounding(estimates: Estimates, coarser: Estimates) -> bool:
    """Whether the capacity is another one without the directions that are as small as a few times the rounding."""
    moved = (coarser.values[0] - estimates.values[0]).abs()
    return bool(moved > DECIDED_BY_ROUNDING * standard_errors(estimates.influence)[0])


def effective_geometry(
    samples: DirectionScalars, estimates: Estimates, protocol: Protocol, *, hidden: bool = False
) -> EffectiveGeometry:
    """The result of a measurement; warns once of what is undefined or left out.

    Args:
        samples: the scalars of all directions.
        estimates: from them.
        protocol: of the measurement.
        hidden: rounding decides the measures, which are then NaN.
    """
    if hidden:
        nothing = torch.full_like(estimates.values, torch.nan), torch.full_like(estimates.influence, torch.nan)
        estimates = Estimates(*nothing, estimates.undefined_problems)
    scalars = samples.scalars
    good = scalars.converged
    excluded = (~good).sum()
    joint = protocol.mode == "joint"
    kept = [field[0] if joint else field for field in (scalars.a, scalars.b, scalars.c)]
    result = EffectiveGeometry(
        **Measures(*estimates.values.unbind())._asdict(),
        standard_error=_measures(standard_errors(estimates.influence)),
        samples=GeometrySamples(
            a=kept[0],
            b=kept[1],
            c=kept[2],
            converged=good[0] if joint else good,
            influence=estimates.influence,
            protocol=protocol,
        ),
        max_kkt_residual=torch.where(good, scalars.residual, 0.0).max(),
        converged=good.all(),
        excluded=excluded,
    )
    if hidden:
        warnings.warn(
            "Manifold geometry: all measures are NaN, because directions of the features that are as small as the "
            "rounding of their dtype decide them. Compute the layer in float32.",
            GeomonitorWarning,
            stacklevel=3,
        )
    else:
        _warn(estimates, int(excluded), good.numel(), len(good))
    return result


def _warn(estimates: Estimates, excluded: int, samples: int, problems: int) -> None:
    """One warning for all undefined measures and excluded directions."""
    said = []
    if excluded:
        said.append(f"{excluded} of {samples} directions did not converge and are left out")
    undefined = estimates.undefined_problems.tolist()
    names = [name for name, n in zip(Measures._fields, undefined, strict=True) if n]
    if names:
        where = (
            "" if problems == 1 else f" in up to {max(undefined)} of {problems} pairs, which are left out of its mean"
        )
        why = "no variation, only zeros, or too few dimensions for both centres and axes?"
        said.append(f"undefined{where}: {', '.join(names)} ({why})")
    if said:
        warnings.warn("Manifold geometry: " + "; ".join(said) + ".", GeomonitorWarning, stacklevel=4)


def _measures(values: Tensor) -> Measures:
    return Measures(*values.unbind())
