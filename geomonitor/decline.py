"""What a verdict is, who gives it and how: a history in, a :class:`Verdict` on a layer out. Pure: history is the state.

The detectors themselves, functions of one :class:`~geomonitor.records.Series`, are in ``geomonitor/detectors/``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from geomonitor.errors import InputError
from geomonitor.markers import MARKERS
from geomonitor.records import History, Series

Direction = Literal["lower", "higher"]

DEFAULT_WATCH = ("dimension", "participation_ratio_per_class")
"""Markers that are judged where nobody says otherwise: those that found most faults in ``docs/calibration.md``."""


class Verdict(NamedTuple):
    """Whether a marker has declined, and the evidence."""

    declined: bool
    layer: str
    marker: str
    value: float = math.nan
    """latest finite value; NaN where there is none"""
    reference: float = math.nan
    """what it is judged against; NaN during warm-up"""
    standard_error: float = math.nan
    """noise of ``value - reference``: the larger of sampling error and scatter of the series; NaN during warm-up"""
    since_step: int | None = None
    """first measurement of the decline, in optimiser steps; None while nothing declines"""
    since_epoch: int | None = None
    """the same in epochs; None also where epochs are not known"""
    checks: int = 0
    """measurements in decline, in a row"""
    direction: Direction = "lower"
    """where the marker went: a rise is a decline of the representation where the marker is worse when higher"""
    agreeing: tuple[str, ...] = ()
    """other watched markers of the layer that are in decline, too"""

    @property
    def change(self) -> float:
        """Relative change against the reference, for instance ``-0.25``."""
        return self.value / self.reference - 1

    @property
    def sigmas(self) -> float:
        """Size of the change in units of its standard error; infinite where the series has no noise."""
        return abs(self.value - self.reference) / self.standard_error if self.standard_error else math.inf


Detector = Callable[[Series], Verdict]
"""Anything that judges a series by its numbers alone."""


def judge(history: History, layer: str, markers: Iterable[str], detector: Detector, votes: int = 1) -> Verdict:
    """The verdict on a layer: that of the marker which speaks loudest.

    Args:
        history: all measurements so far.
        layer: alias of the layer.
        markers: names of the markers to judge, at least one.
        detector: judges each of them.
        votes: kinds of markers that must be in decline at the same time. Markers of one kind, those that share the
            ``state`` they are computed from (``geomonitor.MARKERS``), have one vote together, for they move together.

    Returns:
        A declined verdict if there are votes enough; among several markers, that of the most standard errors.
    """
    return count_votes([detector(history.series(layer, marker)) for marker in markers], votes)


def check_votes(markers: Sequence[str], votes: int) -> None:
    """Refuse a number of votes that the watched markers can never reach.

    Raises:
        InputError: fewer kinds of markers than votes.
    """
    kinds = {kind_of(marker) for marker in markers}
    if not 1 <= votes <= max(1, len(kinds)):
        raise InputError(
            f"votes={votes}, but the watched markers {tuple(markers)} are of {len(kinds)} kind(s), {sorted(kinds)}: "
            "markers of one kind move together and have one vote. Watch markers of other states (geomonitor.MARKERS)."
        )


def count_votes(verdicts: Sequence[Verdict], votes: int) -> Verdict:
    """The verdict of several markers of one layer, see :func:`judge`."""
    declined = [verdict for verdict in verdicts if verdict.declined]
    enough = len({kind_of(verdict.marker) for verdict in declined}) >= votes
    loudest = max(verdicts, key=lambda v: (v.declined, v.sigmas if v.declined else 0.0))
    if not enough:
        return loudest._replace(declined=False)
    others = tuple(verdict.marker for verdict in declined if verdict is not loudest)
    return loudest._replace(agreeing=others)


def kind_of(marker: str) -> str:
    """What a marker is computed from: markers of one kind have one vote together."""
    return MARKERS[marker].state if marker in MARKERS else marker
