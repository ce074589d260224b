"""How often to measure so that measuring costs at most a given share of the training time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from geomonitor import _options
from geomonitor._distributed import largest, rank_and_world_size

CPU = torch.device("cpu")
RECENT = 3
"""Latest measurements whose median cost counts: a slow first one (compilation, cold caches) is soon forgotten."""


class Budget:
    """Counts the occasions on which one would measure, and lets every ``every``-th pass.

    Occasions are counted, not seconds, so that a series stays evenly spaced and all processes decide alike without
    talking, as long as they are given the same costs.

    Args:
        max_overhead: seconds of measuring per second of training, above 0; None: no limit, every occasion passes.

    Raises:
        InputError: ``max_overhead`` not positive.

    >>> budget = Budget(max_overhead=0.02)
    >>> budget.due()  # the first one always
    True
    >>> budget.spend(seconds=0.5, training_seconds=10.0)  # 5 % of the time since the last occasion
    (0.5, 0.05)
    >>> budget.every, [budget.due() for _ in range(3)]
    (3, [False, False, True])
    """

    def __init__(self, max_overhead: float | None = None) -> None:
        self.max_overhead = None if max_overhead is None else _options.Range(0).number("max_overhead", max_overhead)
        self.every = 1
        """occasions from one measurement to the next"""
        self._waited = math.inf  # occasions since the latest measurement; infinite before the first
        self._timed = 0  # those of them that lie within the training time that is known
        self._costs: list[float] = []
        self._periods: list[float] = []
        self._since: float | None = None

    def start(self) -> None:
        """Training goes on now: time counts from here."""
        self._since, self._timed = perf_counter(), 0

    def due(self) -> bool:
        """Count an occasion; True if it is one to measure on."""
        self._waited += 1
        self._timed += 1
        return self._waited >= self.every

    @property
    def training_seconds(self) -> float:
        """Wall-clock time since the latest measurement or :meth:`start`; NaN if there was neither."""
        return math.nan if self._since is None else perf_counter() - self._since

    def spend(self, seconds: float, training_seconds: float, device: torch.device = CPU) -> tuple[float, float]:
        """Note a measurement; time counts from here again. All processes have to call this together.

        Args:
            seconds: what it cost this process.
            training_seconds: time before it, since the one before; NaN where that is not known.
            device: from where the process group can send.

        Returns:
            Cost in seconds, and the same as a share of the training time (NaN where that is not known): those of the
            slowest process, so that all decide alike.
        """
        seconds, training_seconds = largest([seconds, training_seconds if training_seconds > 0 else 0.0], device)
        if self.max_overhead is not None and training_seconds > 0:
            self._costs = [*self._costs, seconds][-RECENT:]
            self._periods = [*self._periods, training_seconds / max(self._timed, 1)][-RECENT:]
            allowed = self.max_overhead * statistics.median(self._periods)
            self.every = max(1, math.ceil(statistics.median(self._costs) / allowed))
        self._waited = 0
        self.start()
        return seconds, seconds / training_seconds if training_seconds > 0 else math.nan

    def record(
        self, seconds: float, training_seconds: float, device: torch.device, warn: Callable[[str, str], None]
    ) -> tuple[float, float]:
        """As :meth:`spend`, with a warning once if a measurement is too expensive for every occasion.

        Args:
            seconds: as in :meth:`spend`.
            training_seconds: likewise.
            device: likewise.
            warn: takes a warning and a key of its cause.
        """
        seconds, overhead = self.spend(seconds, training_seconds, device)
        if self.every > 1 and rank_and_world_size()[0] == 0:
            warn(
                f"a measurement takes {seconds:.2g} s, more than max_overhead={self.max_overhead:.2%} of the "
                f"training time between two: from now on only every {self.every}-th occasion is measured. This "
                "follows the cost, and is not repeated; patience and warm-up of detectors count measurements.",
                "over budget",
            )
        return seconds, overhead

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: a resumed run measures on the occasions on which the unbroken one would."""
        return {"every": self.every, "waited": self._waited, "costs": self._costs, "periods": self._periods}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved budget stopped; without a limit of its own it goes on without one."""
        self._waited = state["waited"]
        if self.max_overhead is not None:
            self.every, self._costs, self._periods = state["every"], list(state["costs"]), list(state["periods"])
