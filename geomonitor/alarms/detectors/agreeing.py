"""The drop from a reference with the limits of markers that have to agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

from geomonitor.alarms.detectors.drop import DropFromReference
from geomonitor.alarms.detectors.robust import sigmas_of

UNSTEADY = ("dimension", "utility")
"""Markers that go on falling in healthy runs, while the classes tighten."""


@dataclass(frozen=True)
class AgreeingDrop(DropFromReference):
    """If families of markers have to agree, a small change of each is enough: once if it is plain, else twice.

    Those that are ``UNSTEADY`` are expected to go on falling as before. If an epoch holds several measurements both
    limits grow, for each of them is a chance to be low. But two families have to be low, at once: of four measurements
    the chance of one family may halve, not fall to a quarter, to leave the chance of both in an epoch as it was.
    """

    drop: float = 0.025
    sigmas: float = 1.75
    plain: float = 1.5

    def limits(self, an_epoch: int) -> tuple[float, float]:
        """``drop`` and ``sigmas`` for an epoch of ``an_epoch`` measurements."""
        sigmas = sigmas_of(self.sigmas, math.sqrt(an_epoch))
        return 1 - (1 - self.drop) ** (sigmas / self.sigmas if self.sigmas else 1), sigmas

    def follows_trend(self, marker: str) -> bool:
        """Whether a marker is expected to go on falling as before."""
        return self.follow_trend or marker in UNSTEADY
