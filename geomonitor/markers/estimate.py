"""A number and its standard error."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """What a marker that has an error of its own gives, 0-dim float64 tensors; NaN: undefined."""

    value: Tensor
    standard_error: Tensor


def jackknife(left_out: Tensor) -> Tensor:
    r"""Standard error from values that each leave one of ``n`` parts out.

    .. math:: \sqrt{\tfrac{n-1}{n} \sum_i (v_{(i)} - \bar v)^2}

    Args:
        left_out: ``(n,)``.

    Returns:
        0-dim; NaN for fewer than two parts.

    Source: Efron 1982.

    >>> import torch
    >>> x = torch.tensor([1.0, 2.0, 6.0]).double()
    >>> bool(jackknife((x.sum() - x) / 2).isclose(x.std() / 3**0.5))  # of a mean: the usual one
    True
    """
    n = len(left_out)
    if n < 2:
        return left_out.new_tensor(float("nan"))
    return ((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt()
