"""What a verdict is, who gives it and how: a history in, a :class:`Verdict` on a layer out. Pure: history is the state.

The detectors themselves, functions of one :class:`~geomonitor.Series`, are in ``detectors/``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomonitor.errors import InputError
from geomonitor.history.history import History
from geomonitor.history.records import Series
from geomonitor.markers import MARKERS

Direction = Literal["lower", "higher"]

DEFAULT_WATCH = (
    *("dimension", "capacity", "numerical_rank", "cdnv"),
    *("participation_ratio_per_class", "mean_norm", "accuracy"),
)
"""Markers that are judged where nobody says otherwise: those that found most faults in ``docs/calibration.md``."""

_ROUNDING = 1e-9


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
    needed: int = 1
    """how many of them make a decline of this marker alone"""
    direction: Direction = "lower"
    """where the marker went: a rise is a decline of the representation where the marker is worse when higher"""
    agreeing: tuple[str, ...] = ()
    """other watched markers of the layer whose last measurement is in decline, too"""

    @property
    def change(self) -> float:
        """Relative change against the reference, for instance ``-0.25``."""
        return self.value / self.reference - 1

    @property
    def share(self) -> float:
        """Share of a vote: 1 for a decline, less while there are fewer measurements in decline than it needs."""
        return 1.0 if self.declined else self.checks / self.needed if self.checks < self.needed else 0.0

    @property
    def sigmas(self) -> float:
        """Size of the change in units of its standard error; infinite where the series has no noise."""
        return abs(self.value - self.reference) / self.standard_error if self.standard_error else math.inf


Detector = Callable[[Series], Verdict]
"""Anything that judges a series by its numbers alone."""


def judge(history: History, layer: str, markers: Iterable[str], detector: Detector, votes: float = 1) -> Verdict:
    """The verdict on a layer: that of the marker which speaks loudest.

    Args:
        history: all measurements so far.
        layer: alias of the layer.
        markers: names of the markers to judge, at least one.
        detector: judges each of them.
        votes: that are needed for an alarm. Each kind of markers has one vote, those that share the ``state`` they are
            computed from (``geomonitor.MARKERS``), for they move together. While fewer measurements in a row are in
            decline than the detector asks for, a kind has a share of its vote: where two are asked for, one
            measurement at which two kinds are in decline is as good as two at which one is. So 1.5 votes are one kind
            for sure and another at its first low measurement, or three at theirs.

    Returns:
        A declined verdict if there are votes enough; among several markers, that of the most standard errors, of the
        representation rather than of the logits.
    """
    return count_votes([detector(history.series(layer, marker)) for marker in markers], votes)


def check_votes(markers: Sequence[str], votes: float) -> None:
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


def count_votes(verdicts: Sequence[Verdict], votes: float) -> Verdict:
    """The verdict of several markers of one layer, see :func:`judge`."""
    # Accuracy is what everybody sees: where the representation declines, too, the warning begins with that.
    loudest = max(verdicts, key=lambda v: (v.share, kind_of(v.marker) != "logits", v.sigmas if v.share else 0.0))
    if not enough_votes([verdict.marker for verdict in verdicts], [verdict.share for verdict in verdicts], votes):
        return loudest._replace(declined=False)
    others = tuple(verdict.marker for verdict in verdicts if verdict.share > 0 and verdict is not loudest)
    return loudest._replace(declined=True, agreeing=others)


def enough_votes(markers: Sequence[str], shares: Sequence[ArrayLike], votes: float) -> NDArray[np.bool_]:
    """Whether the kinds of markers have ``votes`` votes together.

    Args:
        markers: names.
        shares: of a vote, of each marker: a number, or an array over measurements.
        votes: needed.

    >>> bool(enough_votes(["dimension", "radius"], [0.5, 0.5], 1))  # of one kind
    False
    >>> bool(enough_votes(["dimension", "nc1"], [0.5, 0.5], 1))
    True
    """
    kinds: dict[str, NDArray[np.float64]] = {}
    for marker, share in zip(markers, shares, strict=True):
        kinds[kind_of(marker)] = np.maximum(share, kinds.get(kind_of(marker), np.zeros(1)))
    return np.asarray(np.sum(np.broadcast_arrays(*kinds.values()), axis=0) > votes - _ROUNDING)


def kind_of(marker: str) -> str:
    """What a marker is computed from: markers of one kind have one vote together."""
    return MARKERS[marker].state if marker in MARKERS else marker
