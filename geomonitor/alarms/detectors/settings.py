"""Settings are checked where they are given: type, finiteness and range; an error names what to write."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from geomonitor.errors import InputError


class Range(NamedTuple):
    """The numbers that a setting may have.

    >>> str(Range(0, 1)), str(Range(0, math.inf, ends="[)")), str(Range(1, math.inf, ends="[]"))
    ('(0, 1)', '[0, inf)', '[1, inf]')
    """

    low: float
    high: float = math.inf
    ends: str = "()"
    """a square bracket: the end belongs to the range"""
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"

    def number(self, name: str, value: Any) -> float:
        """The value as a plain ``int`` or ``float``, NumPy's included.

        Raises:
            InputError: no number of this range; ``True`` and ``False`` are no numbers.
        """
        if self.whole:
            if not isinstance(value, Integral) or isinstance(value, bool) or not self._holds(float(value)):
                raise InputError(f"{name} is a whole number, {self.low:g} or more; got {value!r}")
            return int(value)
        if not isinstance(value, Real) or isinstance(value, bool) or not self._holds(float(value)):
            raise InputError(f"{name} lies in {self}; got {value!r}")
        return int(value) if isinstance(value, Integral) else float(value)

    def _holds(self, value: float) -> bool:
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        below = value <= self.high if self.ends[1] == "]" else value < self.high
        return above and below  # NaN is in no range


OPEN_SHARE = Range(0, 1)
NOT_NEGATIVE = Range(0, ends="[)")
POSITIVE = Range(0)
COUNT = Range(1, ends="[)", whole=True)


def check_numbers(detector: object, **ranges: Range) -> None:
    """Check settings of a detector, and make them plain numbers.

    Raises:
        InputError: the first one that is out of its range.
    """
    for name, allowed in ranges.items():
        object.__setattr__(detector, name, allowed.number(name, getattr(detector, name)))


def check_flag(detector: object, name: str) -> None:
    """Check that a setting is true or false.

    Raises:
        InputError: something else.
    """
    value = getattr(detector, name)
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is True or False; got {value!r}")
    object.__setattr__(detector, name, bool(value))


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Check that a setting is one of some words.

    Raises:
        InputError: something else.
    """
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is one of {', '.join(map(repr, choices))}; got {value!r}")
