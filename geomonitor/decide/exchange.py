"""Texts from the processes of ``torchrun`` to the first one, through the key-value store that torchrun keeps."""

from __future__ import annotations

import os
from datetime import timedelta

import torch

from geomonitor.errors import InputError

LONGEST_MEASUREMENT = timedelta(days=1)
"""How long the first process waits for the numbers of another one."""


class Exchange:
    """Each process works on a stretch of the places, and the first one collects what all of them have sent.

    Args:
        what: is shared out, for the error.
        run: keeps the places of two runs apart.

    Raises:
        InputError: a process group is initialised: the metrics would wait for one another.
    """

    def __init__(self, what: str, run: str = "") -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise InputError(f"{what} itself: call it without an initialised process group")
        self.rank, self.processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._store, self._prefix = None, f"geomonitor/{run}/"
        if self.processes > 1:
            from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in every build of torch

            hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself
            self._store = TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                self.processes,
                is_master=self.rank == 0 and not hosted,
                timeout=LONGEST_MEASUREMENT,
            )

    def stretch(self, count: int) -> range:
        """Places of this process: stretches of nearly equal length, in order."""
        return range(count * self.rank // self.processes, count * (self.rank + 1) // self.processes)

    def send(self, place: int, text: str) -> None:
        """Send what was found at a place."""
        assert self._store is not None  # several processes
        self._store.set(f"{self._prefix}{place}", text)

    def receive(self, place: int) -> str:
        """Wait for what another process found at a place."""
        assert self._store is not None
        return str(self._store.get(f"{self._prefix}{place}").decode())
