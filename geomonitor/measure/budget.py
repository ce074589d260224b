"""How often to measure so that measuring costs at most a given share of the training time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from geomonitor import _options
from geomonitor._distributed import ALL_PROCESSES, Processes

CPU = torch.device("cpu")
RECENT = 3
"""Latest measurements whose median cost counts: a slow first one (compilation, cold caches) soon drops out."""


class Budget:
    """Counts the scheduled measurements, and makes every ``every``-th one due.

    Measurements are counted, not seconds, so that a series stays evenly spaced and all processes decide alike
    without communication, as long as they get the same costs.

    Args:
        max_overhead: seconds of measuring per second of training, above 0; None: no limit, all are due.
        processes: that measure together.

    Raises:
        InputError: ``max_overhead`` not positive.

    >>> budget = Budget(max_overhead=0.02)
    >>> budget.due()  # the first one always
    True
    >>> budget.spend(seconds=0.5, training_seconds=10.0)  # 5 % of the training time since the last one
    (0.5, 0.05)
    >>> budget.every, [budget.due() for _ in range(3)]
    (3, [False, False, True])
    """

    def __init__(self, max_overhead: float | None = None, processes: Processes = ALL_PROCESSES) -> None:
        self._processes = processes
        self.max_overhead = None if max_overhead is None else _options.Range(0).number("max_overhead", max_overhead)
        self.every = 1
        """every how many scheduled measurements one is made"""
        self._waited = math.inf  # scheduled since the latest one that was made; infinite before the first
        self._timed = 0  # those of them within the known training time
        self._costs: list[float] = []
        self._periods: list[float] = []
        self._since: float | None = None

    def start(self) -> None:
        """Training continues now: time counts from here."""
        self._since, self._timed = perf_counter(), 0

    def due(self) -> bool:
        """Count a scheduled measurement; True if it is to be made."""
        self._waited += 1
        self._timed += 1
        return self._waited >= self.every

    @property
    def training_seconds(self) -> float:
        """Wall-clock time since the latest measurement or :meth:`start`; NaN before the first of either."""
        return math.nan if self._since is None else perf_counter() - self._since

    def spend(self, seconds: float, training_seconds: float, device: torch.device = CPU) -> tuple[float, float]:
        """Record a measurement; time counts from here again. All processes have to call this together.

        Args:
            seconds: what it cost this process.
            training_seconds: training time between the measurement before and this one; NaN if it is not known.
            device: from which the process group can send.

        Returns:
            Cost in seconds, and the same as a share of the training time (NaN if that is not known), both of the
            slowest process, so that all decide alike.
        """
        known = training_seconds if training_seconds > 0 else 0.0
        seconds, training_seconds = self._processes.largest([seconds, known], device)
        if self.max_overhead is not None and training_seconds > 0:
            self._costs = [*self._costs, seconds][-RECENT:]
            self._periods = [*self._periods, training_seconds / max(self._timed, 1)][-RECENT:]
            allowed = self.max_overhead * statistics.median(self._periods)
            self.every = max(1, math.ceil(statistics.median(self._costs) / allowed))
        self._waited = 0
        self.start()
        return seconds, seconds / training_seconds if training_seconds > 0 else math.nan

    def record(
        self, seconds: float, training_seconds: float, device: torch.device | None, warn: Callable[[str, str], None]
    ) -> tuple[float, float]:
        """As :meth:`spend`, with one warning if a measurement is too expensive to be made every time.

        Args:
            seconds: as in :meth:`spend`.
            training_seconds: likewise.
            device: likewise; None: the processes did not measure together, so the cost is not that of a measurement.
            warn: takes a warning and a key of its cause.
        """
        try:
            if device is None:
                raise RuntimeError("not measured together")
            seconds, overhead = self.spend(seconds, training_seconds, device)
        except RuntimeError:  # also a process that has died meanwhile, which the training finds out by itself
            self._waited = 0
            self.start()
            return seconds, math.nan
        if self.every > 1 and self._processes.rank == 0:
            warn(
                f"a measurement takes {seconds:.2g} s, more than max_overhead={self.max_overhead:.2%} of the "
                f"training time between two: from now on only every {self.every}-th measurement is made. This "
                "follows the cost, and is not repeated; patience and warm-up of detectors count measurements.",
                "over budget",
            )
        return seconds, overhead

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: a resumed run measures at the same steps as an unbroken one."""
        return {"every": self.every, "waited": self._waited, "costs": self._costs, "periods": self._periods}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a saved budget; without a limit of its own it continues without one."""
        self._waited = state["waited"]
        if self.max_overhead is not None:
            self.every, self._costs, self._periods = state["every"], list(state["costs"]), list(state["periods"])
