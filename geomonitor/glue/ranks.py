"""Which rank does which part of the work, and how the parts are joined."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed
from torch import Tensor


class Ranks(Protocol):
    """The two collectives that a split measurement needs. Every rank makes the same calls, also an idle one."""

    rank: int
    size: int

    def sum(self, part: Tensor) -> Tensor:
        """Sum over ranks of tensors of equal shape."""

    def gather(self, part: Tensor) -> Tensor:
        """Parts of all ranks joined along dimension 0 in the order of ranks; lengths may differ."""


class OneProcess:
    """No other process: every part is the whole.

    >>> OneProcess().gather(torch.ones(2))
    tensor([1., 1.])
    """

    rank = 0
    size = 1

    def sum(self, part: Tensor) -> Tensor:
        return part

    def gather(self, part: Tensor) -> Tensor:
        return part


class ProcessGroup:
    """The ranks of an initialised ``torch.distributed`` process group.

    Args:
        group: the group; None is the default group.
    """

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = torch.distributed.get_rank(group)
        self.size = torch.distributed.get_world_size(group)

    def sum(self, part: Tensor) -> Tensor:
        total = part.clone()
        torch.distributed.all_reduce(total, group=self._group)
        return total

    def gather(self, part: Tensor) -> Tensor:
        length = torch.tensor([len(part)], device=part.device)
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        torch.distributed.all_gather(lengths, length, group=self._group)
        sizes = [int(n) for n in lengths]
        padded = part.new_zeros(max(sizes), *part.shape[1:])  # equal shapes: unequal ones dead-lock
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(parts, padded, group=self._group)
        return torch.cat([p[:n] for p, n in zip(parts, sizes, strict=True)])


def own_share(count: int, ranks: Ranks) -> range:
    """The consecutive part of ``range(count)`` that a rank works on; parts differ by at most one.

    >>> own_share(5, OneProcess())
    range(0, 5)
    """
    return range(count * ranks.rank // ranks.size, count * (ranks.rank + 1) // ranks.size)
