"""Checks of options where they are given: type, finiteness and range, with a sentence that says what to write.

NumPy integers and floats count as numbers and become Python's own, so that they can be saved; ``True`` is no number.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection
from typing import Any, cast

from geomonitor.errors import InputError


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number from ``least`` on.

    Raises:
        InputError: anything else.

    >>> import numpy as np
    >>> whole("batch_size", np.int64(3))
    3
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InputError(f"{name} must be a whole number, {least} or more; got {value!r}")
    return int(value)


def whole_or_none(name: str, value: Any, *, least: int = 1) -> int | None:
    """As :func:`whole`, or None."""
    return None if value is None else whole(name, value, least=least)


def real(name: str, value: Any, *, above: float = -math.inf, least: float = -math.inf) -> float:
    """A finite number above ``above`` and not below ``least``.

    Raises:
        InputError: anything else.
    """
    bounds = [f"above {above:g}"] * (above > -math.inf) + [f"{least:g} or more"] * (least > -math.inf)
    wrong = isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value)
    if wrong or value <= above or value < least:
        raise InputError(f"{name} must be a finite number{', ' if bounds else ''}{' and '.join(bounds)}; got {value!r}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        InputError: anything else, such as ``"no"``, which Python would take for True.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False; got {value!r}")
    return value


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """One of a closed set of words.

    Raises:
        InputError: anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be {' or '.join(repr(choice) for choice in choices)}; got {value!r}")
    return value


def function(name: str, value: Any, arguments: str) -> Callable[..., Any]:
    """Something that can be called with as many positional arguments as ``arguments`` names.

    Raises:
        InputError: not callable, or of another number of arguments, as far as its signature is known.
    """
    import inspect

    wanted = f"{name} must be a function of ({arguments})"
    if not callable(value) or isinstance(value, type):
        raise InputError(f"{wanted}; got {value!r}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return cast(Callable[..., Any], value)
    try:
        signature.bind(*[None] * len(arguments.split(",")))
    except TypeError as error:
        raise InputError(f"{wanted}; {value!r} does not take these: {error}") from error
    return cast(Callable[..., Any], value)
