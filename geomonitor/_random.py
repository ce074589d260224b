"""Random streams: what geomonitor draws does not move those of the training."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

# Random steps inside the block (a transform, noise in the forward pass) start here, so that the same model
# gives the same features at every measurement.
_SEED_INSIDE = 0
# The streams belong to the process: of two threads that save and restore them at the same time, the second to leave
# would restore what the first one had drawn.
_STREAMS = threading.RLock()
if hasattr(os, "register_at_fork"):  # a process forked from another thread must not inherit a lock that stays closed
    os.register_at_fork(before=_STREAMS.acquire, after_in_parent=_STREAMS.release, after_in_child=_STREAMS.release)


@contextmanager
def preserved_rng(start: int = _SEED_INSIDE) -> Iterator[None]:
    """Give the block random streams of its own, from a fixed seed, and put the caller's back afterwards.

    Covers ``random``, ``numpy.random``, and the default generators of torch on the CPU and on every device
    that has been used so far (a device that has not is not woken up). In one process one such block runs at a time:
    another thread that enters one waits.

    Args:
        start: seed of the streams; ``numpy.random`` takes its lower 32 bits.

    Yields:
        Nothing.

    Example:
        >>> torch.manual_seed(1) and None
        >>> with preserved_rng():
        ...     inside = torch.rand(3)
        >>> after = torch.rand(3)
        >>> torch.manual_seed(1) and None
        >>> torch.equal(after, torch.rand(3))
        True
    """
    with _STREAMS, ExitStack() as stack:
        seeders: list[Callable[[int], object]] = []

        def keep(get: Callable[[], Any], put: Callable[[Any], object], seed: Callable[[int], object]) -> None:
            stack.callback(put, get())
            seeders.append(seed)

        keep(random.getstate, random.setstate, random.seed)
        keep(partial(np.random.get_state, legacy=False), np.random.set_state, _seed_numpy)
        # The generator's own method: torch.manual_seed would also reach devices that are still asleep.
        keep(torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            keep(torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all, torch.cuda.manual_seed_all)
        if torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
            keep(torch.xpu.get_rng_state_all, torch.xpu.set_rng_state_all, torch.xpu.manual_seed_all)
        if torch.backends.mps.is_available():
            keep(torch.mps.get_rng_state, torch.mps.set_rng_state, torch.mps.manual_seed)
        for seed in seeders:
            seed(start)
        yield


def _seed_numpy(seed: int) -> None:
    np.random.seed(seed % 2**32)
