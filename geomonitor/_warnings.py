"""Warnings that are given once: a run of a thousand measurements must not say the same thing a thousand times."""

from __future__ import annotations

import warnings

from geomonitor.errors import GeomonitorWarning


class Told:
    """What has been said so far, by cause.

    >>> told = Told()
    >>> with warnings.catch_warnings(record=True) as said:
    ...     warnings.simplefilter("always")
    ...     told.once("3 rows are NaN", "NaN rows")
    ...     told.once("5 rows are NaN", "NaN rows")
    >>> len(said)
    1
    """

    def __init__(self) -> None:
        self._causes: set[str] = set()

    def once(self, message: str, cause: str) -> None:
        """Warn of each cause once in the life of this object."""
        if cause not in self._causes:
            self._causes.add(cause)
            warnings.warn(message, GeomonitorWarning, stacklevel=4)


def cause_of(error: Exception) -> str:
    """Kind and place of an error: the same cause is told once, also where numbers in its message change."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{type(error).__name__} {trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno)}"
