"""From the verdicts on several markers to the verdict on a layer: families of markers vote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomonitor.alarms.verdict import Verdict
from geomonitor.errors import InputError
from geomonitor.markers import MARKERS

_ROUNDING = 1e-9
"""Shares such as 1/3 add up to a whole vote in spite of rounding."""


def family_of(marker: str) -> str:
    """What a marker is computed from: markers of one family move together and have one vote.

    >>> family_of("dimension") == family_of("capacity")
    True
    """
    return MARKERS[marker].state if marker in MARKERS else marker


def check_votes(markers: Sequence[str], votes: float) -> None:
    """Refuse a number of votes that the watched markers can never reach.

    Raises:
        InputError: fewer families of markers than votes.
    """
    families = {family_of(marker) for marker in markers}
    if not 1 <= votes <= max(1, len(families)):
        raise InputError(
            f"votes={votes}, but the watched markers {tuple(markers)} are of {len(families)} family(s), "
            f"{sorted(families)}: markers of one family move together and have one vote. "
            "Watch markers of other families (the column state of geomonitor.MARKERS), or write fewer votes."
        )


def count_votes(
    verdicts: Sequence[Verdict], votes: float, alarm_at: Mapping[str, float] = MappingProxyType({})
) -> Verdict:
    """The verdict on a layer, from those on its watched markers.

    Each family of markers has one vote. While fewer measurements in a row are declining than the detector needs, a
    family has a share of its vote: if two are needed, one measurement at which two families are declining is as
    good as two at which one is. So 1.5 votes are one confirmed family and one pending, or three pending.

    Args:
        verdicts: of each watched marker, at least one.
        votes: needed.
        alarm_at: relative decline of each marker that counts for an alarm; a marker that is not in it counts for a
            notice only. Empty: every notice is an alarm.

    Returns:
        That of the marker with the largest share, of the representation rather than of the logits, of the most
        standard errors; ``noticed`` if there are enough votes, ``declined`` if there also are as many families of
        markers (rounded up) that two measurements in a row showed as far down as ``alarm_at``.
    """
    counted = [verdict for verdict in verdicts if verdict.size >= alarm_at.get(verdict.marker, math.inf)]
    low = [verdict for verdict in verdicts if verdict.checks and verdict.marker in alarm_at]
    near = [*counted, *(verdict for verdict in low if _latest(verdict) >= alarm_at[verdict.marker])]
    pending = bool(alarm_at) and _families(near) >= votes > _families(counted)
    # Accuracy is what every training loop shows: if the representation also declines, the warning begins with that.
    loudest = max(
        verdicts,
        key=lambda v: (v in counted, v.share, family_of(v.marker) != "logits", v.sigmas if v.share else 0.0),
    )
    if not enough_votes([verdict.marker for verdict in verdicts], [verdict.share for verdict in verdicts], votes):
        return loudest._replace(declined=False, pending=pending)
    others = tuple(verdict.marker for verdict in verdicts if verdict.share > 0 and verdict is not loudest)
    harmful = not alarm_at or _families(counted) >= votes
    return loudest._replace(declined=harmful, noticed=True, pending=pending, agreeing=others)


def _families(verdicts: Sequence[Verdict]) -> int:
    return len({family_of(verdict.marker) for verdict in verdicts})


def _latest(verdict: Verdict) -> float:
    """Relative decline at the latest measurement, of a rise as of the fall of the reciprocal."""
    low, high = verdict.value, verdict.reference
    return 1 - (low / high if verdict.direction == "lower" else high / low)


def enough_votes(markers: Sequence[str], shares: Sequence[ArrayLike], votes: float) -> NDArray[np.bool_]:
    """Whether the families of markers have ``votes`` votes together.

    Args:
        markers: names.
        shares: of a vote, of each marker: a number, or an array over measurements.
        votes: needed.

    >>> bool(enough_votes(["dimension", "radius"], [0.5, 0.5], 1))  # of one family
    False
    >>> bool(enough_votes(["dimension", "nc1"], [0.5, 0.5], 1))
    True
    """
    families: dict[str, NDArray[np.float64]] = {}
    for marker, share in zip(markers, shares, strict=True):
        families[family_of(marker)] = np.maximum(share, families.get(family_of(marker), np.zeros(1)))
    return np.asarray(np.sum(np.broadcast_arrays(*families.values()), axis=0) > votes - _ROUNDING)
