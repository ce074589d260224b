"""What harm was associated with in the bench: how far each marker fell, and how often such an alarm came before harm.

Harm is a fall of the accuracy on new classes by 0.03 or more below its plateau, and by three paired standard errors, at
two measurements in a row. Source of the figures: ``docs/carry_over.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

ALARM_AT: Mapping[str, float] = MappingProxyType(
    {"numerical_rank": 0.1, "dimension": 0.2, "mean_norm": 0.3, "accuracy": 0.1}
)
"""Relative decline of a marker that counts for an alarm; a smaller one makes a notice."""


class Rate(NamedTuple):
    """How often what the default panel raised came with harm."""

    harmed: int
    raised: int


ALARMS_IN_THE_BENCH = Rate(175, 290)
"""Of the runs with an alarm, those with harm that the alarm came in time for."""
NOTICES_IN_THE_BENCH = Rate(153, 461)
"""Of the runs with a notice and without an alarm, those with harm."""
SILENT_IN_THE_BENCH = Rate(107, 1697)
"""Of the runs with neither, those with harm."""
