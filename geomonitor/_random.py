"""Random streams: what geomonitor draws does not move those of the training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

_SEED_INSIDE = 0


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Give the block random streams of its own, from a fixed seed, and put the caller's back afterwards.

    Covers ``random``, ``numpy.random``, and the default generators of torch on the CPU and on every device
    that has been used so far (a device that has not is not woken up).

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
    with ExitStack() as stack:
        seeders: list[Callable[[int], object]] = []

        def keep(get: Callable[[], Any], put: Callable[[Any], object], seed: Callable[[int], object]) -> None:
            stack.callback(put, get())
            seeders.append(seed)

        keep(random.getstate, random.setstate, random.seed)
        keep(partial(np.random.get_state, legacy=False), np.random.set_state, np.random.seed)
        # The generator's own method: torch.manual_seed would also reach devices that are still asleep.
        keep(torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            keep(torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all, torch.cuda.manual_seed_all)
        if torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
            keep(torch.xpu.get_rng_state_all, torch.xpu.set_rng_state_all, torch.xpu.manual_seed_all)
        if torch.backends.mps.is_available():
            keep(torch.mps.get_rng_state, torch.mps.set_rng_state, torch.mps.manual_seed)
        for seed in seeders:
            seed(_SEED_INSIDE)
        yield
