"""What the processes of a distributed run agree on; with one process there is nothing to agree on."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Rank of the process and number of processes: ``(0, 1)`` without an initialised process group."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _distributed() else (0, 1)


def all_processes(succeeded: bool, device: torch.device) -> bool:
    """Whether all processes succeeded; without this, one that failed would leave the others waiting for ever."""
    if not _distributed():
        return succeeded
    flag = torch.tensor(int(succeeded), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag)


def total(tensor: Tensor, device: torch.device) -> Tensor:
    """Sum over the processes, on the CPU; ``device``: the one that the process group can send from."""
    if not _distributed():
        return tensor.cpu()
    shared = tensor.to(device, copy=True)
    torch.distributed.all_reduce(shared)
    return shared.cpu()


def largest(numbers: list[float], device: torch.device) -> list[float]:
    """The largest of each number over the processes, so that all of them go on with the same ones."""
    if not _distributed():
        return numbers
    # MPS has no float64, but there is no process group on it either.
    shared = torch.tensor(numbers, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return [float(number) for number in shared.cpu()]


def gathered(mine: T) -> list[T]:
    """What each process has, by rank; it is pickled on the way, between the processes of this run only."""
    if not _distributed():
        return [mine]
    parts: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, mine)
    return parts  # type: ignore[return-value]


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
