"""Numbers of five significant digits as integers that compress well and are read back to the digit.

A number is its five digits and its exponent, ``digits * 10**(exponent - 4)``; its code, ``90000 * exponent + digits``
but for constants, orders as the numbers do. Neighbours in a series have similar codes, so differences along it are
stored, in four planes of bytes: the upper ones are nearly constant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

FIRST, DIGITS = 10_000, 90_000
"""The lowest number of five digits, and how many there are."""
LOWEST_EXPONENT = -330
"""Below the exponent of the smallest float64."""
UNDEFINED = 2**26
"""Code of NaN: above the highest of a number."""
EXACT = np.array([float(f"1e{power}") for power in range(23)])
"""Powers of ten that float64 holds exactly: with them one multiplication or division rounds as ``float`` does."""


def encode(values: Iterable[float | None]) -> NDArray[np.uint8]:
    """A series, rounded to five significant digits, as four planes of bytes ``(4, len)``; None is NaN."""
    codes = np.array([_code(value) for value in values], dtype=np.int64)
    steps = np.diff(codes, prepend=0)
    unsigned = np.where(steps < 0, -2 * steps - 1, 2 * steps).astype("<u4")
    return np.ascontiguousarray(unsigned.view(np.uint8).reshape(-1, 4).T)


def decode(planes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The series in planes ``(4, ..., len)``: each number as ``float`` reads its decimals."""
    unsigned = np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view("<u4")[..., 0].astype(np.int64)
    codes = np.cumsum(np.where(unsigned & 1, -(unsigned + 1) // 2, unsigned // 2), axis=-1)
    exponents, digits = np.divmod(np.abs(codes) - 1, DIGITS)
    digits, powers = digits + FIRST, exponents + LOWEST_EXPONENT - 4
    scale = EXACT[np.minimum(np.abs(powers), len(EXACT) - 1)]
    values = np.where(powers < 0, digits / scale, digits * scale)
    for index in zip(*np.nonzero((np.abs(powers) >= len(EXACT)) & (codes != 0)), strict=True):
        values[index] = float(f"{digits[index]}e{powers[index]}")
    values = np.where(codes == 0, 0.0, np.copysign(values, codes))
    values[codes == UNDEFINED] = math.nan
    return values


def _code(value: float | None) -> int:
    if value is None or math.isnan(value):
        return UNDEFINED
    if value == 0:
        return 0
    if math.isinf(value):
        digits, exponent = FIRST, 309  # read back as an infinity
    else:
        text, power = f"{abs(value):.4e}".split("e")
        digits, exponent = int(text.replace(".", "")), int(power)
    code = DIGITS * (exponent - LOWEST_EXPONENT) + digits - FIRST + 1
    return -code if value < 0 else code
