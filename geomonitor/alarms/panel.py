"""What is judged, and how, where the user says nothing or only a part of it: markers, a detector, votes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from geomonitor.alarms.detectors import DropFromReference, make_detector
from geomonitor.alarms.detectors.readings import Finding, Readings
from geomonitor.alarms.detectors.robust import sigmas_of
from geomonitor.alarms.verdict import DEFAULT_WATCH, Detector, check_votes, kind_of
from geomonitor.errors import InputError

AUTO = "auto"
"""Name of the detector that suits the number of votes."""
ALONE = DropFromReference()
"""One marker alone has to change much, and stay there."""
UNSTEADY = ("dimension", "utility")
"""Markers that go on falling in healthy runs, while the classes tighten."""


@dataclass(frozen=True)
class AgreeingDrop(DropFromReference):
    """Where kinds of markers have to agree, a small change of each will do, once where it is plain, else twice.

    Those that are ``UNSTEADY`` are expected to go on falling as before. Where an epoch holds several measurements both
    limits grow, for each of them is a chance to be low. But two kinds have to be, at once: of four measurements the
    chance of one kind may halve, not fall to a quarter, to leave the chance of both in an epoch as it was.
    """

    drop: float = 0.025
    sigmas: float = 1.75
    plain: float = 1.5

    def limits(self, readings: int) -> tuple[float, float]:
        """``drop`` and ``sigmas`` where an epoch holds so many readings."""
        sigmas = sigmas_of(self.sigmas, math.sqrt(readings))
        return 1 - (1 - self.drop) ** (sigmas / self.sigmas if self.sigmas else 1), sigmas

    def walk(self, seen: Readings) -> Iterator[Finding]:
        """What is found at each reading."""
        if seen.series.marker in UNSTEADY:
            return DropFromReference.walk(dataclasses.replace(self, follow_trend=True), seen)
        return super().walk(seen)


AGREEING = AgreeingDrop()
VOTES = 1.5
"""One kind for sure and another that may be, or three that may be."""
LEAST_KINDS = 3
"""Where so many kinds of markers are measured, or more, they have to agree by default."""


class Panel(NamedTuple):
    """Markers that are judged, the judge, and the votes that make an alarm."""

    watch: tuple[str, ...]
    detector: Detector
    votes: float


def make_panel(
    measured: Sequence[str],
    *,
    watch: Sequence[str] | None = None,
    detector: Detector | str = AUTO,
    votes: float | None = None,
    **settings: Any,
) -> Panel:
    """Fill in what the user left open, by the calibration in ``docs/calibration.md``.

    Args:
        measured: names of the markers there are.
        watch: markers to judge; by default those of ``DEFAULT_WATCH`` that are measured.
        detector: a function of a Series, a name in ``geomonitor.DETECTORS``, or ``"auto"``: ``AGREEING`` for more votes
            than one, else ``ALONE``.
        votes: see :func:`geomonitor.alarms.verdict.judge`; by default ``VOTES`` where the default markers are watched
            and three kinds of them are measured, else 1.
        **settings: of a detector given by name.

    Raises:
        InputError: no such detector, settings that it does not take, or votes that can never be reached.

    >>> make_panel(["dimension", "numerical_rank", "cdnv", "accuracy"])[::2]
    (('dimension', 'numerical_rank', 'cdnv', 'accuracy'), 1.5)
    >>> make_panel(["dimension"], drop=0.2).detector.drop
    0.2
    """
    names = tuple(marker for marker in DEFAULT_WATCH if marker in measured) if watch is None else tuple(watch)
    if votes is None:
        votes = VOTES if watch is None and len({kind_of(name) for name in names}) >= LEAST_KINDS else 1
    check_votes(names, votes)
    if detector == AUTO:
        suited = AGREEING if votes > 1 else ALONE
        try:
            return Panel(names, dataclasses.replace(suited, **settings), votes)
        except TypeError as error:
            raise InputError(f"{suited} does not take these settings: {error}") from error
    if isinstance(detector, str):
        return Panel(names, make_detector(detector, **settings), votes)
    if settings or not callable(detector):
        raise InputError(f"detector is a name, or a function of a Series without further settings; got {detector!r}")
    return Panel(names, detector, votes)
