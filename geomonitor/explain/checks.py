"""What fibers are drawn of: checked once, each problem one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError, MeasurementError
from geomonitor.explain.priors import Prior


def checked_inputs(inputs: Any, prior: Prior) -> Tensor:
    """Representatives of the prior's shape, float32.

    Raises:
        InputError: they are not.
    """
    _options.instance("inputs", inputs, Tensor, "a tensor (R, *prior.shape); texts and mappings have no fibers here")
    if not inputs.is_floating_point():
        raise InputError(
            f"inputs must be floating numbers in [{prior.low:g}, {prior.high:g}]; got {inputs.dtype}: tokens have no "
            "continuous prior, and images of whole numbers have to be scaled"
        )
    if tuple(inputs.shape[1:]) != tuple(prior.shape) or not len(inputs):
        raise InputError(
            f"inputs must be one or more of the prior's shape {tuple(prior.shape)}; got shape {tuple(inputs.shape)}: "
            "give a prior of these data, and to_model= to layer_features if the model takes another space"
        )
    if not bool(torch.isfinite(inputs).all()):
        raise InputError("inputs must be finite numbers; some are NaN or infinite: choose other representatives")
    plain: Tensor = inputs.detach().float()
    return plain


def checked_ids(ids: Any, count: int) -> list[int]:
    """Whole numbers that name the representatives.

    Raises:
        InputError: another number of them.
    """
    if ids is None:
        return list(range(count))
    _options.instance("ids", ids, Tensor, "a tensor of whole numbers, one a representative")
    if ids.shape != (count,) or ids.is_floating_point() or ids.is_complex():
        raise InputError(f"ids must be {count} whole numbers, one a representative; got {ids.dtype} {tuple(ids.shape)}")
    return [int(each) for each in ids]


def checked_rows(found: Any, count: int, what: str = "representatives") -> None:
    """Refuse features that are not one finite row an input.

    Raises:
        InputError: another shape.
        MeasurementError: not finite.
    """
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != count:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"features must give a tensor (B, N), one row an input; got {shape} for {count} inputs")
    broken = int((~torch.isfinite(found).all(dim=1)).sum())
    if broken:
        raise MeasurementError(
            f"the features of {broken} of {count} {what} are not finite (NaN or infinite): take weights from before "
            "they became so, or other points"
        )


def checked_scale(scale: float, what: str = "representatives") -> float:
    """The mean squared distance between features, if it divides.

    Raises:
        MeasurementError: all features are equal, or there is one row.
    """
    if not scale > 0:
        raise MeasurementError(
            f"the layer gives all {what} equal features, so everything is one fiber: take another layer, or more than "
            "one representative"
        )
    return scale


def checked_strengths(strengths: object) -> tuple[float, ...]:
    """Strengths of guidance in rising order.

    Raises:
        InputError: something else.
    """
    if not isinstance(strengths, Sequence) or isinstance(strengths, str) or not strengths:
        raise InputError(f"strengths must be positive numbers, such as (1, 3, 10, 30); got {strengths!r}")
    return tuple(sorted(float(_options.POSITIVE.number("strengths", each)) for each in strengths))
