"""The work in chunks that fit a memory budget: how many directions or pairs at a time, and the parts joined."""

from __future__ import annotations

import torch
from torch import Tensor

from geomonitor.glue.scalars import Scalars

# A chunk gets at least the budget divided by this, however much the points and the Gram matrix take.
LEAST_SHARE = 8
# Numbers of size (directions, columns) that are alive at once in a round of the solver.
DENSE_ARRAYS = 10


def budget_left(memory_bytes: int, *taken: Tensor) -> int:
    """What the budget leaves for a chunk; always a part of it, so that chunks do not become absurdly small."""
    left = memory_bytes - sum(tensor.numel() * tensor.element_size() for tensor in taken)
    return max(left, memory_bytes // LEAST_SHARE)


def chunks(rows: range, size: int, device: torch.device) -> list[Tensor]:
    """Chunks of about equal length, of at most ``size`` rows."""
    if not len(rows):
        return []
    numbers = torch.arange(rows.start, rows.stop, device=device)
    return list(torch.tensor_split(numbers, -(-len(rows) // max(1, size))))


def joined(parts: list[Scalars], like: Tensor) -> Scalars:
    """The scalars of all chunks; empty ones like ``like`` of an idle rank."""
    if not parts:  # an idle rank still takes part in the gathering
        empty = like.new_zeros(0)
        return Scalars(*([empty] * len(Scalars._fields)))._replace(converged=empty.bool())
    return parts[0] if len(parts) == 1 else Scalars(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
