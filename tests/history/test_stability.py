"""Forgetting and plasticity within a window: brute force, known values, noise, tasks, wrong input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geomonitor import InputError, Series
from geomonitor.history.stability import Stability, fall_of_noise, stability_of


def series(values: list[float], steps: list[int] | None = None) -> Series:
    at = np.arange(len(values)) if steps is None else np.array(steps)
    return Series("penultimate", "accuracy", at, at * math.nan, np.array(values, dtype=float), at * math.nan)


def brute_force(values: list[float], window: int) -> tuple[float, float]:
    """As the published code does it: all pairs within the last ``window`` values, at each measurement."""
    fall = rise = 0.0
    for end in range(1, len(values) + 1):
        held = values[max(0, end - window) : end]
        for i, one in enumerate(held):
            for other in held[i + 1 :]:
                fall, rise = max(fall, one - other), max(rise, other - one)
    return fall, rise


@pytest.mark.parametrize("window", [2, 3, 10, 50])
def test_the_queue_equals_brute_force(window):
    stream = np.random.default_rng(window)
    for _ in range(125):
        values = stream.normal(size=stream.integers(1, 40)).round(int(stream.integers(0, 3))).tolist()
        found = stability_of(series(values), window=window)
        assert (found.windowed_forgetting, found.windowed_plasticity) == brute_force(values, window)


def test_a_window_holds_as_many_values_as_it_is_long():
    values = [1.0, 0.9, 0.8, 0.7]  # three values span a fall of 0.2
    assert stability_of(series(values), window=3).windowed_forgetting == pytest.approx(0.2)
    assert stability_of(series(values), window=4).windowed_forgetting == pytest.approx(0.3)
    assert stability_of(series(values), window=4).windowed_plasticity == 0


@pytest.mark.parametrize("change", [lambda x: x + 7, lambda x: x[::-1], lambda x: -x, lambda x: 3 * x])
def test_shift_reversal_sign_and_scale(change):
    values = np.random.default_rng(0).normal(size=60).cumsum()
    one, other = (stability_of(series(list(x)), window=8) for x in (values, change(values)))
    fall, rise = one.windowed_forgetting, one.windowed_plasticity
    sign = change(np.array([0.0, 1.0]))
    expected = (rise, fall) if sign[1] < sign[0] else (3 * fall, 3 * rise) if sign[1] == 3 else (fall, rise)
    assert (other.windowed_forgetting, other.windowed_plasticity) == pytest.approx(expected)


def test_minima_and_worst_case_by_hand():
    # Task 0 ends at step 20, task 1 at 40; at 50 the third is trained. The value at the end of a task is its own.
    steps = [10, 20, 30, 40, 50]
    tasks = [
        series([0.1, 0.2, 0.6, 0.5, 0.7], steps),  # since 20: 0.5
        series([0.0, 0.1, 0.8, 0.3, 0.4], steps),  # since 40: 0.4
        series([0.0, 0.0, 0.0, 0.0, 0.9], steps),
    ]
    found = stability_of(tasks, tasks=[20, 40])
    assert found.min_accuracy == pytest.approx((0.5 + 0.4) / 2)
    assert found.worst_case_accuracy == pytest.approx(0.9 / 3 + (1 - 1 / 3) * (0.5 + 0.4) / 2)
    assert found.windowed_forgetting == pytest.approx((0.1 + 0.5 + 0) / 3)
    assert found.windowed_plasticity == pytest.approx((0.6 + 0.8 + 0.9) / 3)


def test_at_the_end_of_a_task_it_is_still_the_current_one():
    tasks = [series([0.5, 0.4], [10, 20]), series([0.6, 0.7], [10, 20])]
    found = stability_of(tasks, tasks=[20])
    assert math.isnan(found.min_accuracy)
    assert found.worst_case_accuracy == 0.4  # of task 0, the current one
    assert stability_of(tasks, tasks=[19]).worst_case_accuracy == pytest.approx((0.7 + 0.4) / 2)


def test_online_is_the_same_as_afterwards():
    values = np.random.default_rng(1).normal(size=(2, 30))
    online = Stability(window=5)
    for step in range(30):
        if step == 10:
            online.next_task(9)
        for task in (0, 1):
            online.update(step, values[task, step], task)
    assert online.compute() == stability_of([series(list(x)) for x in values], window=5, tasks=[9])


def test_one_series_has_no_worst_case_after_its_task():
    found = stability_of(series([0.9, 0.3, 0.8]), tasks=[0])
    assert found.min_accuracy == 0.3
    assert math.isnan(found.worst_case_accuracy)


def test_the_null_of_noise():
    for length, window, published in ((40, 10, 3.8), (400, 10, 5.0), (400, 100, 5.65)):
        assert fall_of_noise(length, window) == pytest.approx(published, abs=0.05)
    assert fall_of_noise(2, 10) == pytest.approx(1 / math.sqrt(math.pi), rel=0.15)  # the mean of max(0, difference)
    assert fall_of_noise(1, 10) == 0


@pytest.mark.parametrize(("length", "window"), [(7, 2), (7, 3), (9, 4), (9, 20)])
def test_the_null_is_the_mean_of_brute_force(length, window):
    noise = np.random.default_rng(0).standard_normal((400, length))
    expected = np.mean([brute_force(list(row), window)[0] for row in noise])
    assert fall_of_noise(length, window) == pytest.approx(expected, rel=1e-12)


def test_noise_reads_what_noise_would_and_a_gap_more():
    stream = np.random.default_rng(3)
    ratios, gaps = [], []
    for _ in range(200):
        values = 0.8 + 0.01 * stream.normal(size=100)
        found = stability_of(series(list(values)))
        ratios.append(found.windowed_forgetting / found.noise)
        values[50:53] -= 0.3
        fallen = stability_of(series(list(values)))
        gaps.append(fallen.windowed_forgetting / fallen.noise)
        assert fallen.noise == pytest.approx(found.noise, rel=0.3)  # three fallen values move the scatter little
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    assert min(gaps) > 2 * max(ratios)


def test_the_minimum_that_noise_brings():
    stream = np.random.default_rng(4)
    below = [stability_of(series(list(stream.normal(size=50))), tasks=[0]) for _ in range(400)]
    assert np.mean([found.min_accuracy_noise for found in below]) == pytest.approx(
        -np.mean([found.min_accuracy for found in below]), rel=0.05
    )


def test_a_straight_rise_is_no_noise():
    found = stability_of(series(list(np.linspace(0, 1, 50))))
    assert found.noise == pytest.approx(0, abs=1e-12)
    assert found.windowed_plasticity == pytest.approx(9 / 49)


def test_a_failed_measurement_takes_its_place():
    nan = math.nan
    assert stability_of(series([1.0, nan, 0.5]), window=2).windowed_forgetting == 0
    assert stability_of(series([1.0, nan, 0.5]), window=3).windowed_forgetting == 0.5
    assert stability_of(series([nan, 0.7, nan]), tasks=[0]).min_accuracy == 0.7


def test_too_little_is_undefined():
    assert all(math.isnan(number) for number in stability_of(series([])))
    assert all(math.isnan(number) for number in stability_of(series([math.nan])))
    one = stability_of(series([0.5]))
    assert (one.windowed_forgetting, one.windowed_plasticity, one.worst_case_accuracy) == (0, 0, 0.5)
    assert math.isnan(one.noise)
    assert math.isnan(one.min_accuracy)


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="window"):
        Stability(window=1)
    with pytest.raises(InputError, match="tasks end must rise; got 10 after 10"):
        Stability(tasks=[10, 10])
    stability = Stability()
    stability.update(5, 0.5)
    with pytest.raises(InputError, match="steps of a task must rise; got 5 after 5"):
        stability.update(5, 0.4)
    stability.update(5, 0.4, task=1)
    with pytest.raises(InputError, match="task"):
        stability.update(6, 0.4, task=-1)
