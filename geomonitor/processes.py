"""What the processes of a distributed run agree on; with one process there is nothing to agree on."""

from __future__ import annotations

import torch
import torch.distributed


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


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
