"""The cached runs are stored as integers; each number is read back as ``float`` reads its five digits."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from benchmarks.early_warning.decimals import decode, encode


def read_back(values):
    return decode(encode(values)).tolist()


def test_known_values():
    hard = [0.0, 1.0, -1.0, 0.1, 2.675, 99999.0, 1.1102e-16, -8.8819e-05, 1e23, 5e-324, 1.7976e308, math.inf, -math.inf]
    assert read_back(hard) == hard


def test_undefined_is_nan():
    assert all(map(math.isnan, read_back([math.nan, None])))
    assert read_back([1.0, None, 2.0])[::2] == [1.0, 2.0]


def test_any_number_is_read_as_its_decimals():
    source = random.Random(0)
    values = [source.uniform(-1, 1) * 10.0 ** source.randint(-300, 300) for _ in range(2000)]
    values += [source.uniform(-1, 1) * 10.0 ** source.randint(-20, 6) for _ in range(20000)]
    assert read_back(values) == [float(f"{value:.5g}") for value in values]


def test_runs_are_independent():
    first, second = [3.0, 4.0, 5.0], [-7.0, 8.0, 1e-9]
    both = decode(np.stack([encode(first), encode(second)], axis=1))
    np.testing.assert_array_equal(both, [first, second])


@pytest.mark.parametrize("value", [9.99995, 0.999995, 99999.6])
def test_rounding_up_to_the_next_power_of_ten(value):
    assert read_back([value]) == [float(f"{value:.5g}")]
