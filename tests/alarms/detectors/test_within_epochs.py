"""Several measurements in one epoch: they share the ups and downs of the training, and come sooner than the classes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from geomonitor import Cusum, DropFromReference
from geomonitor.alarms.detectors import AgreeingDrop
from geomonitor.alarms.detectors.incremental import measurements
from geomonitor.alarms.detectors.levels import WINDOW, within_an_epoch
from geomonitor.alarms.panel import AGREEING
from tests.alarms.detectors.synthetic import series

COUNT, AN_EPOCH = 96, 4
TIME = np.arange(COUNT)
EPOCHS = {"one an epoch": TIME, "four an epoch": TIME // AN_EPOCH, "not known": np.full(COUNT, np.nan)}


def as_series(values, epochs):
    """Without sampling errors."""
    whole = series(values, np.nan, marker="mean_norm")
    return whole._replace(epochs=np.asarray(epochs, dtype=float))


def wandering(seed: int) -> np.ndarray:
    """Strays by 2 %, and what is high stays high for some measurements."""
    draw, values, memory = np.random.default_rng([5, seed]), [0.0], 0.7
    for step in draw.standard_normal(COUNT - 1):
        values.append(memory * values[-1] + step * 0.02 * np.sqrt(1 - memory**2))
    return 2 * np.exp(values)


def in_decline(epochs) -> float:
    """Share of the measurements of healthy runs at which a kind of markers has a whole vote."""
    return np.mean([AGREEING.declines(as_series(wandering(seed), epochs)).mean() for seed in range(200)])


def test_what_wanders_within_an_epoch_is_seldom_in_decline():
    assert in_decline(EPOCHS["four an epoch"]) < min(0.03, in_decline(EPOCHS["one an epoch"]) / 3)


@pytest.mark.parametrize("sigmas", [1.5, 2.0])
def test_an_epoch_has_no_more_false_alarms_however_often_it_is_measured(sigmas):
    """Of white noise: four measurements are four chances."""
    detector = DropFromReference(drop=1e-6, sigmas=sigmas, patience_checks=1)
    an_epoch = {}
    for name in ("one an epoch", "four an epoch", "not known"):
        low = [
            detector.declines(
                as_series(2 * np.exp(np.random.default_rng([7, seed]).normal(0, 0.01, COUNT)), EPOCHS[name])
            )
            for seed in range(300)
        ]
        an_epoch[name] = np.mean(low, axis=0)[WINDOW:].mean() * (1 if name == "one an epoch" else AN_EPOCH)
    assert 0.6 < an_epoch["four an epoch"] / an_epoch["one an epoch"] < 1.1
    assert an_epoch["not known"] > 3 * an_epoch["one an epoch"]


def test_two_kinds_agree_by_chance_no_more_often_however_often_an_epoch_is_measured():
    """The noise is the larger of two estimates, which makes it rarer: for one kind by 0.6 at most, see above."""
    detector, an_epoch = AgreeingDrop(drop=1e-6, sigmas=1.0, patience_checks=1), {}
    for name in ("one an epoch", "four an epoch"):
        both = []
        for seed in range(300):
            noise = np.random.default_rng([8, seed]).normal(0, 0.01, (2, COUNT))
            first, second = (detector.shares(as_series(2 * np.exp(kind), EPOCHS[name])) for kind in noise)
            both.append((first > 0) & (second > 0))
        an_epoch[name] = np.mean(both, axis=0)[WINDOW:].mean() * (1 if name == "one an epoch" else AN_EPOCH)
    assert 0.6**2 < an_epoch["four an epoch"] / an_epoch["one an epoch"] < 1.1


@pytest.mark.parametrize(("an_epoch", "held"), [(1, 1), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_how_many_measurements_an_epoch_holds(an_epoch, held):
    steady, detector = as_series(np.full(COUNT, 2.0), TIME // an_epoch), DropFromReference()
    states = itertools.accumulate(measurements(steady), detector.step, initial=detector.start("fc", "mean_norm"))
    assert {within_an_epoch(state["tracks"][0]["past"]) for state in list(states)[9:]} == {held}


@pytest.mark.parametrize("detector", [DropFromReference(), AGREEING, Cusum()], ids=lambda d: type(d).__name__)
def test_a_step_is_found_at_once(detector):
    values = np.where(TIME < 60, 2.0, 1.2) * np.exp(np.random.default_rng(1).normal(0, 0.005, COUNT))
    alarms = [int(detector.declines(as_series(values, epochs)).argmax()) for epochs in EPOCHS.values()]
    assert len(set(alarms)) == 1
    assert 60 <= alarms[0] <= 62


@pytest.mark.parametrize("detector", [DropFromReference(), AGREEING, Cusum()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize(
    ("epochs", "judged_from"),
    [
        (TIME, 6),
        (TIME // 2, 12),
        (TIME // 4, 24),
        (TIME // 10, 24),  # no more than four times as many measurements
        (np.zeros(COUNT), 24),  # a single epoch
        (10 * TIME, 6),  # one measurement in ten epochs
        (EPOCHS["not known"], 6),
    ],
)
def test_the_warm_up_lasts_for_epochs_where_they_hold_several_measurements(detector, epochs, judged_from):
    judged = [
        n for n in range(COUNT) if np.isfinite(detector(as_series(np.full(n + 1, 2.0), epochs[: n + 1])).reference)
    ]
    assert judged[0] == judged_from


@pytest.mark.parametrize("epochs", EPOCHS.values(), ids=EPOCHS)
def test_a_verdict_rests_on_the_past_alone(epochs):
    values = wandering(3) * np.where(TIME < 70, 1, 0.9)
    whole = AGREEING.shares(as_series(values, epochs))
    so_far = [AGREEING.shares(as_series(values[: n + 1], epochs[: n + 1]))[-1] for n in range(COUNT)]
    np.testing.assert_array_equal(whole, so_far)


def test_epochs_that_are_not_known_are_taken_for_one_a_measurement():
    values = wandering(4)
    known, unknown = (AGREEING.shares(as_series(values, EPOCHS[name])) for name in ("one an epoch", "not known"))
    np.testing.assert_array_equal(known, unknown)


def test_a_follow_up_is_no_new_pace():
    epochs = np.array([0, 1, 2, 3, 3, 4, 5, 6, 7, 8])
    series, detector = as_series(np.full(10, 2.0), epochs), DropFromReference()
    states = itertools.accumulate(measurements(series), detector.step, initial=detector.start("fc", "mean_norm"))
    assert {within_an_epoch(state["tracks"][0]["past"]) for state in list(states)[5:]} == {1}
