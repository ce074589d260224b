"""The drop from a reference on runs that decline and on runs that do not; the measurement of the alarm is asserted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geomonitor import DETECTORS, DropFromReference, InputError, Series

NOISE = 0.03
"""Relative standard error of a measurement at T = 200, and the scatter of a healthy run, in trials 2-4 %."""


def series(values, errors=NOISE) -> Series:
    values = np.asarray(values, dtype=float)
    count = len(values)
    return Series(
        "fc", "dimension", 10 * np.arange(count), np.arange(count, dtype=float), values, errors * np.abs(values)
    )


def first_alarm(values, detector=None, errors=NOISE) -> int | None:
    """Number of the measurement at which the alarm is first on, as a run sees it: one measurement after the other."""
    detector = detector or DropFromReference()
    return next((n for n in range(len(values)) if detector(series(values[: n + 1], errors)).declined), None)


def noisy(level, seed: int, noise: float = NOISE) -> np.ndarray:
    level = np.asarray(level, dtype=float)
    return level * (1 + noise * np.random.default_rng(seed).standard_normal(len(level)))


WARM_UP = 2 + 2 * np.exp(-np.arange(40) / 3)  # falls by half while the classes form
FAULT = np.where(np.arange(40) < 20, 1.0, 0.7)


@pytest.mark.parametrize(
    ("name", "values", "alarm"),
    [
        ("flat", np.full(40, 2.0), None),
        ("warm-up curve", WARM_UP, None),
        ("rise", np.linspace(1, 3, 40), None),
        ("step of 30 %", 2 * FAULT, 21),  # measurements 20 and 21 are low
        ("warm-up, then a step", WARM_UP * FAULT, 21),
        ("step of 4 %", np.where(np.arange(40) < 20, 2.0, 1.92), None),  # smaller than drop
        ("single outlier", np.where(np.arange(40) == 20, 1.0, 2.0), None),
        ("gap of failed measurements", np.where((np.arange(40) > 15) & (np.arange(40) < 18), np.nan, 2 * FAULT), 21),
        ("failed measurement within the decline", np.where(np.arange(40) == 21, np.nan, 2 * FAULT), 22),
        ("slow drift, 1 % a measurement of forty", 2 * 0.995 ** np.arange(40), None),
        ("fast drift after a plateau", np.r_[np.full(20, 2.0), 2 * 0.96 ** np.arange(1, 21)], 24),  # 0.96^4 < 0.85
        ("all failed", np.full(40, np.nan), None),
        ("too short", [3.0, 1.0, 1.0], None),
        ("never positive", -2 * FAULT, None),
    ],
)
def test_when_the_alarm_comes(name, values, alarm):
    assert first_alarm(values) == alarm


def test_a_finer_cadence_needs_a_longer_warm_up():
    often = 2 + 2 * np.exp(-np.arange(400) / 30)  # the same early fall, measured ten times as often
    assert first_alarm(often, DropFromReference(warmup_checks=100)) is None


def test_a_restless_series_of_few_measurements_still_shows_its_fault():
    # A run of the demo: four differences alone would take its scatter for half of the drop.
    restless = [3.57, 2.02, 1.90, 1.82, 1.94, 1.92, 1.76, 1.96, 1.81, 1.44, 1.33, 1.30, 1.32, 1.19]
    assert first_alarm(restless) == 10


def test_a_drop_within_the_noise_is_none():
    assert first_alarm(2 * FAULT, errors=0.2) is None


def test_the_scatter_of_the_series_is_noise_too():
    wild = np.where(np.arange(40) % 2, 2.6, 2.0) * np.where(np.arange(40) < 20, 1.0, 0.8)
    assert first_alarm(wild, errors=0.0) is None


def test_the_alarm_stays_until_recovery_and_comes_again():
    values = np.r_[np.full(40, 2.0), np.full(10, 1.2), np.full(20, 2.0), np.full(3, 1.2)]
    alarms = [DropFromReference()(series(values[: n + 1])).declined for n in range(len(values))]
    assert [n for n in range(1, len(alarms)) if alarms[n] != alarms[n - 1]] == [41, 50, 71]


def test_the_verdict_tells_since_when_how_much_and_against_what():
    verdict = DropFromReference()(series(2 * FAULT[:25]))
    assert verdict.declined
    assert (verdict.since_step, verdict.since_epoch, verdict.checks) == (200, 20, 5)
    assert (verdict.reference, verdict.value) == (2.0, pytest.approx(1.4))
    assert verdict.change == pytest.approx(-0.3)
    assert verdict.standard_error == pytest.approx(NOISE * math.sqrt(2 * 2.0 * 1.4))  # of the logarithms
    assert verdict.sigmas == pytest.approx(-math.log(0.7) / (NOISE * math.sqrt(2)), rel=0.01)


def test_without_epochs_the_step_is_known():
    known = series(2 * FAULT[:25])
    verdict = DropFromReference()(known._replace(epochs=np.full(25, np.nan)))
    assert (verdict.since_step, verdict.since_epoch) == (200, None)


def test_false_alarms_on_healthy_runs_are_rare():
    # The bound is one run in fifty; an alarm at any of the 40 measurements counts.
    alarms = sum(first_alarm(noisy(WARM_UP, seed)) is not None for seed in range(150))
    assert alarms <= 3


def test_faulty_runs_are_found():
    late = np.r_[np.ones(10), FAULT[:-10]]  # after 30 measurements the classes have formed
    found = [first_alarm(noisy(WARM_UP * late, seed)) for seed in range(50)]
    assert sum(alarm is not None and 31 <= alarm <= 35 for alarm in found) >= 48


def test_a_count_moves_by_more_than_one_before_it_is_news():
    def ranks(after, marker="numerical_rank"):
        epochs = np.arange(40)
        return Series("fc", marker, 10 * epochs, epochs, np.where(epochs < 20, 12.0, after), np.full(40, np.nan))

    detector = DropFromReference(drop=0.05)
    assert not detector.declines(ranks(11.0)).any()  # 8 %, and always the same
    assert not detector.declines(ranks(10.0)).any()
    assert detector.declines(ranks(9.0)).any()
    assert detector.declines(ranks(11.0, "rankme")).any()  # no count: known to the last digit


def test_the_registry_makes_detectors_by_name():
    assert DETECTORS["drop_from_reference"](drop=0.2) == DropFromReference(drop=0.2)


@pytest.mark.parametrize(
    "option",
    [
        {"drop": 0},
        {"drop": 1.5},
        {"sigmas": -1},
        {"settled": 0},
        {"patience_checks": 0},
        {"warmup_checks": 0},
        {"plain": 0.9},
        {"plain": math.nan},
    ],
)
def test_options_without_sense_are_refused(option):
    with pytest.raises(InputError):
        DropFromReference(**option)
