"""How often to measure so that measuring costs at most a given share of the training time."""

from __future__ import annotations

import math
import statistics
from time import perf_counter
from typing import Any

import torch

from geomonitor import _options
from geomonitor._distributed import ALL_PROCESSES, Processes

CPU = torch.device("cpu")
RECENT = 3
"""Latest measurements whose median cost counts: a slow first one (compilation, cold caches) soon drops out."""
FREE_SECONDS = 60.0
"""Seconds of measuring in a run that no share limits: a cap on short runs would save little, and make alarms, which
need eight measurements, impossible (``docs/howto/cost.md``)."""


class Budget:
    """Counts the scheduled measurements, and makes every ``every``-th one due.

    Until measuring has taken ``FREE_SECONDS`` in all, each one is due. Measurements are counted, not seconds, so that a
    series stays evenly spaced and all processes decide alike without communication, as long as they get the same costs.

    Args:
        max_overhead: seconds of measuring per second of training, above 0; None: no limit, all are due.
        processes: that measure together.

    Raises:
        InputError: ``max_overhead`` not positive.

    >>> budget = Budget(max_overhead=0.02)
    >>> budget.due()  # the first one always
    True
    >>> budget.spend(seconds=100.0, training_seconds=2000.0)  # 5 % of the training time since the last one
    (100.0, 0.05)
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
        self._spent = 0.0
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
        self._spent += seconds
        if self.max_overhead is not None and training_seconds > 0:
            self._costs = [*self._costs, seconds][-RECENT:]
            if self._timed:  # else it was not scheduled: before the first step, or to confirm
                self._periods = [*self._periods, training_seconds / self._timed][-RECENT:]
            self.every = self._needed() if self._spent > FREE_SECONDS and self._periods else 1
        self._waited = 0
        self.start()
        return seconds, seconds / training_seconds if training_seconds > 0 else math.nan

    def _needed(self) -> int:
        allowed = (self.max_overhead or math.inf) * statistics.median(self._periods)
        return max(1, math.ceil(statistics.median(self._costs) / allowed))

    def record(self, seconds: float, training_seconds: float, device: torch.device | None) -> tuple[float, float]:
        """As :meth:`spend`, also if the processes did not measure together or one of them has died.

        Args:
            seconds: as in :meth:`spend`.
            training_seconds: likewise.
            device: likewise; None: the processes did not measure together, so the cost is not that of a measurement.
        """
        try:
            if device is None:
                raise RuntimeError("not measured together")
            return self.spend(seconds, training_seconds, device)
        except RuntimeError:  # also a process that has died meanwhile, which the training finds out by itself
            self._waited = 0
            self.start()
            return seconds, math.nan

    @property
    def acts(self) -> str:
        """One line on what the limit does now."""
        return (
            f"measuring takes {statistics.median(self._costs):.2g} s a time, more than max_overhead="
            f"{self.max_overhead:g} of the training time: from now on every {self.every}-th scheduled measurement is "
            "made (alarms count measurements; max_overhead=None makes all)"
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: a resumed run measures at the same steps as an unbroken one."""
        state = {"every": self.every, "waited": self._waited, "spent": self._spent}
        return {**state, "costs": self._costs, "periods": self._periods}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a saved budget; without a limit of its own it continues without one."""
        self._waited, self._spent = state["waited"], state.get("spent", 0.0)
        if self.max_overhead is not None:
            self.every, self._costs, self._periods = state["every"], list(state["costs"]), list(state["periods"])
