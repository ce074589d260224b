"""One thread for small batched operations on the CPU: more of them wait for one another longer than they work.

A training process shares its cores with data loaders. Where OpenMP has more threads than there are free cores, a batch
of small factorisations takes up to twenty times longer with several threads than with one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_PROBLEM = 2048
"""Points up to which a problem is solved by one thread; beyond, products of matrices outweigh the small operations."""


@contextmanager
def threads_for(points: int, device: torch.device) -> Iterator[None]:
    """Limit torch to one thread inside the block if the work is small and on the CPU; afterwards all are back.

    Args:
        points: points in one problem.
        device: of the work.

    >>> before = torch.get_num_threads()
    >>> with threads_for(100, torch.device("cpu")):
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or points > SMALL_PROBLEM or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
