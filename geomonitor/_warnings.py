"""Warnings that do not repeat themselves: a run of a thousand measurements must not warn a thousand times."""

from __future__ import annotations

import warnings

from geomonitor.errors import GeomonitorWarning


class WarnOnce:
    """Warns of each cause once; of a failure that lasts at its 1st, 10th, 100th, ... time.

    >>> warn = WarnOnce()
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn("3 rows are NaN", "NaN rows")
    ...     warn("5 rows are NaN", "NaN rows")
    ...     for step in range(10):
    ...         warn.of_failure(f"step {step} failed.", "failure")
    >>> [str(warning.message) for warning in caught]
    ['3 rows are NaN', 'step 0 failed.', 'step 9 failed. This was the 10th time.']
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __call__(self, message: str, key: str) -> None:
        """Warn once per ``key`` in the life of this object; numbers in the message make no new cause."""
        if self._count(key) == 1:
            warnings.warn(message, GeomonitorWarning, stacklevel=4)

    def of_failure(self, message: str, key: str) -> None:
        """Warn at the 1st, 10th, 100th, ... time: a failure that lasts is not forgotten."""
        count = self._count(key)
        if count == 1:
            warnings.warn(message, GeomonitorWarning, stacklevel=4)
        elif str(count).strip("0") == "1":
            warnings.warn(f"{message} This was the {count}th time.", GeomonitorWarning, stacklevel=4)

    def _count(self, key: str) -> int:
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key]


def cause_of(error: BaseException) -> str:
    """Kind and place of an error, a key for :class:`WarnOnce`: numbers in its message make no new cause."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{type(error).__name__} {trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno)}"
