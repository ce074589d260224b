"""Checks of options at the place that takes them: type, finiteness and range; an error names what to write.

NumPy numbers count as numbers and become Python's own, so that they can be saved; ``True`` is no number.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor, nn

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
            if not isinstance(value, Integral) or isinstance(value, bool) or not self._holds(int(value)):
                allowed = f", {self.low:g} or more" if self.high == math.inf else f" in {self}"
                raise InputError(f"{name} is a whole number{allowed}; got {value!r}")
            return int(value)
        if not isinstance(value, Real) or isinstance(value, bool) or not self._holds(float(value)):
            raise InputError(f"{name} lies in {self}; got {value!r}")
        return int(value) if isinstance(value, Integral) else float(value)

    def _holds(self, value: float) -> bool:  # an int may be too large for a float
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        below = value <= self.high if self.ends[1] == "]" else value < self.high
        return above and below  # NaN is in no range


OPEN_SHARE = Range(0, 1)
NOT_NEGATIVE = Range(0, ends="[)")
POSITIVE = Range(0)
COUNT = Range(1, ends="[)", whole=True)


def check_numbers(options: object, **ranges: Range) -> None:
    """Check several options of an object, and make them plain numbers.

    Raises:
        InputError: the first one that is out of its range.
    """
    for name, allowed in ranges.items():
        object.__setattr__(options, name, allowed.number(name, getattr(options, name)))


def check_flag(options: object, name: str) -> None:
    """Check that an option is true or false, and make it Python's own.

    Raises:
        InputError: something else.
    """
    object.__setattr__(options, name, flag(name, getattr(options, name)))


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number from ``least`` on.

    Raises:
        InputError: anything else.

    >>> whole("batch_size", np.int64(3))
    3
    """
    return int(Range(least, ends="[)", whole=True).number(name, value))


def whole_or_none(name: str, value: Any, *, least: int = 1) -> int | None:
    """As :func:`whole`, or None."""
    return None if value is None else whole(name, value, least=least)


def flag(name: str, value: Any) -> bool:
    """True or False, also NumPy's.

    Raises:
        InputError: anything else, such as ``"no"``, which Python would take for True.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is True or False; got {value!r}")
    return bool(value)


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """One of a closed set of words.

    Raises:
        InputError: anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


_MOST_SHOWN = 100


def instance(name: str, value: Any, kind: type[Any] | tuple[type[Any], ...], expected: str) -> Any:
    """Something of a kind.

    Raises:
        InputError: anything else, a class instead of its instance for example.

    >>> instance("labels", [0, 1], list, "a list")
    [0, 1]
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} must be {expected}; got {_shown(value)}")
    return value


def path(name: str, value: Any) -> Path:
    """A path, from text or a path.

    Raises:
        InputError: anything else.
    """
    if not isinstance(value, (str, os.PathLike)) or not str(value) or "\0" in str(value):
        raise InputError(f"{name} must be a path, such as 'runs/geometry.csv'; got {_shown(value)}")
    return Path(value)


def text(name: str, value: Any) -> str:
    """Text.

    Raises:
        InputError: anything else.
    """
    return str(instance(name, value, str, "text"))


def names(name: str, value: Any, example: str) -> list[str]:
    """One name or several as a list.

    Raises:
        InputError: neither.

    >>> names("markers", "nc1", "'nc1'"), names("markers", ("nc1", "rankme"), "'nc1'")
    (['nc1'], ['nc1', 'rankme'])
    """
    if isinstance(value, str):
        return [value]
    several = isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, Tensor, np.ndarray))
    listed: list[Any] = list(value) if several else [None]
    if not all(isinstance(each, str) for each in listed):
        raise InputError(f"{name} must be a name or a list of names, such as {example}; got {_shown(value)}")
    return listed


def _shown(value: Any) -> str:
    """The ``repr`` of a value on one line, cut off if it is long."""
    line = " ".join(repr(value).split())
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}... ({type(value).__name__})"


def some_of(name: str, value: Any, choices: Collection[str]) -> tuple[str, ...]:
    """Some of the choices.

    Raises:
        InputError: something else.

    >>> some_of("expect", ["learning_rate"], ("learning_rate", "weight_decay"))
    ('learning_rate',)
    """
    listed = names(name, value, repr(next(iter(choices))))
    if not set(listed) <= set(choices):
        raise InputError(f"{name} is a list of some of {', '.join(choices)}; got {value!r}")
    return tuple(listed)


def function(name: str, value: Any, arguments: str) -> Callable[..., Any]:
    """Something that can be called with as many positional arguments as ``arguments`` names.

    Raises:
        InputError: not callable, or of another number of arguments, as far as its signature is known.
    """
    wanted = f"{name} must be a function of ({arguments})"
    if not callable(value) or isinstance(value, type):
        raise InputError(f"{wanted}; got {value!r}")
    try:
        signature = inspect.signature(value.forward if isinstance(value, nn.Module) else value)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return cast(Callable[..., Any], value)
    try:
        signature.bind(*[None] * len(arguments.split(",")))
    except TypeError as error:
        raise InputError(f"{wanted}; {value!r} does not take these: {error}") from error
    return cast(Callable[..., Any], value)
