"""Measurements of the same network whose float32 features were rounded differently."""

from __future__ import annotations

import math
from collections.abc import Iterable

import geomonitor as gm

ERRORS = 0.05
"""What rounding may move a value with a standard error by, in standard errors: other numbers of threads or other batch
shapes change float32 features by 1e-7, which moves measures near zero by any relative amount, and no conclusion."""
RELATIVE, ABSOLUTE = 1e-6, 1e-12
"""The same for the others, which are sums over the features; the absolute one is for values that are rounding alone."""


def assert_agree(first: Iterable[gm.Record], second: Iterable[gm.Record]) -> None:
    """The same keys; values within a small part of their standard errors, or within rounding if they have none."""
    one, other = ({r.key: r for r in records if r.marker not in ("seconds", "overhead")} for records in (first, second))
    assert one.keys() == other.keys()
    for key, record in one.items():
        value, error = other[key].value, record.standard_error
        if math.isnan(record.value) or math.isnan(value):
            assert math.isnan(record.value) == math.isnan(value), key
            continue
        known = error is not None and math.isfinite(error) and error > 0
        allowed = ERRORS * error if known else max(RELATIVE * abs(value), ABSOLUTE)
        assert abs(record.value - value) <= allowed, f"{key}: {record.value} and {value}, standard error {error}"
