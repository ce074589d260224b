"""Two runs side by side at their last measurement, and bounds that a marker must keep: a gate for the CI of a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.history.records import ALARM, Series
from geomonitor.history.runs import Run
from geomonitor.measure.protocol import differences

_BOUND = re.compile(r"(?:(?P<layer>[^/]+)/)?(?P<marker>[^/=]+)=(?P<number>[^%]+)(?P<percent>%?)")


class Bound(NamedTuple):
    """A smallest or largest value that a marker may have at the end of a run."""

    layer: str | None
    """None: every layer that has the marker"""
    marker: str
    side: Literal["min", "max"]
    number: float
    relative: bool
    """whether ``number`` is a fraction of the reference, not the value itself"""
    text: str
    """as it was written"""


class Finding(NamedTuple):
    """One marker of one layer at the last measurement of both runs."""

    layer: str
    marker: str
    reference: float
    reference_error: float
    value: float
    error: float
    broken: tuple[Bound, ...]
    """bounds that the value does not keep; an undefined value keeps none"""

    @property
    def change(self) -> float:
        """Relative to the reference, for instance -0.25; NaN if there is none."""
        return self.value / self.reference - 1 if self.reference else math.nan


def bound(text: str, side: Literal["min", "max"]) -> Bound:
    """Read a bound: ``[LAYER/]MARKER=NUMBER``, or ``=PERCENT%`` of the reference run.

    Args:
        text: as the user wrote it.
        side: whether values below or above are refused.

    Raises:
        InputError: not of this form.

    >>> bound("dimension=90%", "min").number, bound("fc/nc1=0.5", "max").layer
    (0.9, 'fc')
    """
    parts = _BOUND.fullmatch(_options.text("text", text).strip())
    try:
        number = float(parts["number"]) if parts else math.nan
    except ValueError:
        number = math.nan
    if parts is None or not math.isfinite(number):
        raise InputError(
            f"--{side} {text!r}: expected MARKER=90% (of the reference run) or MARKER=0.9 (the value itself), "
            "with LAYER/ before it for one layer"
        )
    relative = bool(parts["percent"])
    return Bound(parts["layer"], parts["marker"], side, number / 100 if relative else number, relative, text.strip())


def compare_runs(reference: Run, run: Run, bounds: Iterable[Bound] = ()) -> list[Finding]:
    """Put the last measurements of two runs side by side and check bounds.

    Args:
        reference: what relative bounds refer to.
        run: what is checked.
        bounds: from :func:`bound`.

    Returns:
        A finding for each marker that both runs have, or that a bound names.

    Raises:
        InputError: a bound on what was not measured; a relative bound on runs of different protocols, whose values
            must not be compared, or on a reference that is not positive.
    """
    bounds = list(bounds)
    if any(b.relative for b in bounds) and (changed := differences(reference.protocol, run.protocol)):
        raise InputError(
            f"{reference.path} and {run.path} were measured by different protocols ({', '.join(changed)}): their "
            "values cannot be compared; measure both with the same probe set and settings, or give absolute bounds"
        )
    checked = {key: tuple(b for b in bounds if _concerns(b, *key)) for key in _measured(run)}
    for b in bounds:
        if not any(b in of_key for of_key in checked.values()):
            names = ", ".join(f"{layer}/{marker}" for layer, marker in checked)
            raise InputError(f"--{b.side} {b.text}: {run.path} has no such marker; it has {names}")
    both = set(_measured(reference))
    for b in bounds:
        missing = [key for key, of_key in checked.items() if b in of_key and key not in both]
        if b.relative and missing:
            raise InputError(f"--{b.side} {b.text}: {reference.path} has no {'/'.join(missing[0])} to compare with")
        for key in (key for key, of_key in checked.items() if b.relative and b in of_key):
            if not _last(reference.history.series(*key))[0] > 0:
                raise InputError(f"--{b.side} {b.text}: the reference has no positive value; give an absolute bound")
    return [_finding(reference, run, key, of_key) for key, of_key in checked.items() if of_key or key in both]


def _measured(run: Run) -> list[tuple[str, str]]:
    history = run.history
    return [(layer, marker) for layer in history.layers for marker in history.markers(layer) if marker != ALARM]


def _concerns(b: Bound, layer: str, marker: str) -> bool:
    return b.marker == marker and b.layer in (None, layer)


def _finding(reference: Run, run: Run, key: tuple[str, str], bounds: tuple[Bound, ...]) -> Finding:
    before, before_error = _last(reference.history.series(*key))
    value, error = _last(run.history.series(*key))
    broken = tuple(b for b in bounds if not _keeps(value, b, before))
    return Finding(*key, before, before_error, value, error, broken)


def _last(series: Series) -> tuple[float, float]:
    if not len(series.values):
        return math.nan, math.nan
    return float(series.values[-1]), float(series.standard_errors[-1])


def _keeps(value: float, b: Bound, reference: float) -> bool:
    limit = b.number * reference if b.relative else b.number
    return bool(np.isfinite(value) and (value >= limit if b.side == "min" else value <= limit))
