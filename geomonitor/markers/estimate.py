"""A number and its standard error."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """What a marker that has an error of its own gives, 0-dim float64 tensors; NaN: undefined."""

    value: Tensor
    standard_error: Tensor


def jackknife(left_out: Tensor, groups: Tensor | None = None) -> Tensor:
    r"""Standard error from values that each leave one of ``n`` parts out.

    .. math:: \sqrt{\tfrac{n-1}{n} \sum_i (v_{(i)} - \bar v)^2}

    With groups, the changes of the parts of a group add up: to first order the jackknife that leaves a group out.

    Args:
        left_out: ``(n,)``.
        groups: ``(n,)`` numbers of groups of parts that are not independent, such as tokens of a sequence.

    Returns:
        0-dim; NaN for fewer than two parts or groups.

    Source: Efron 1982.

    >>> import torch
    >>> x = torch.tensor([1.0, 2.0, 6.0]).double()
    >>> bool(jackknife((x.sum() - x) / 2).isclose(x.std() / 3**0.5))  # of a mean: the usual one
    True
    """
    changes = grouped(left_out - left_out.mean(), groups)
    n = len(changes)
    if n < 2:
        return left_out.new_tensor(float("nan"))
    return ((n - 1) / n * (changes - changes.mean()).square().sum()).sqrt()


def error_of(influences: Tensor, groups: Tensor | None = None) -> Tensor:
    r"""Standard error from what each of ``n`` points adds to a number: :math:`\sqrt{\tfrac{n}{n-1} \sum_i c_i^2}`.

    Args:
        influences: ``(n,)``, of sum zero.
        groups: ``(n,)`` as in :func:`jackknife`; then those of a group add up, and ``n`` counts groups.

    Returns:
        0-dim; NaN for fewer than two points or groups.

    Source: the delta method; with groups, Liang and Zeger 1986.

    >>> import torch
    >>> x = torch.tensor([1.0, 2.0, 6.0]).double()
    >>> bool(error_of((x - x.mean()) / 3).isclose(x.std() / 3**0.5))  # of a mean: the usual one
    True
    """
    own = grouped(influences, groups)
    n = len(own)
    if n < 2:
        return influences.new_tensor(float("nan"))
    return (n / (n - 1) * own.square().sum()).sqrt()


def grouped(changes: Tensor, groups: Tensor | None) -> Tensor:
    """Sums of ``(n,)`` values by group; as they are without groups.

    >>> import torch
    >>> grouped(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([7, 7, 3]))
    tensor([4., 3.])
    """
    if groups is None:
        return changes
    numbers = torch.unique(groups.to(changes.device), return_inverse=True)[1]
    return changes.new_zeros(int(numbers.max()) + 1 if len(numbers) else 0).index_add(0, numbers, changes)
