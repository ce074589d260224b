"""Detectors as recursions: pure, in plain values, at constant size, and equal to the definition written out."""

from __future__ import annotations

import copy
import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped]

from geomonitor import Cusum, DropFromReference, History, Record, ReferenceRuns, Series, Trend
from geomonitor.alarms.detectors import AgreeingDrop, Measured
from geomonitor.alarms.detectors.incremental import WholeSeries, incremental, measurements
from tests.alarms.detectors.synthetic import FAULT, RAMP, TIME, WARM_UP, noisy, series

GOOD = [
    History(Record(10 * n, n, "fc", "dimension", float(v)) for n, v in enumerate(noisy(WARM_UP, seed, 0.02)))
    for seed in range(6)
]
DETECTORS = [
    DropFromReference(),
    DropFromReference(worse="either", follow_trend=True),
    AgreeingDrop(),
    Cusum(),
    Trend(),
    ReferenceRuns(GOOD),
    WholeSeries(DropFromReference()),
]
VALUES = noisy(WARM_UP * np.r_[RAMP[:30], np.ones(10)], 5)
VALUES[[0, 25, 32]] = np.nan
VALUES[33] = 0.0


def named(detector) -> str:
    return f"{type(detector).__name__} {getattr(detector, 'worse', '')}"


@pytest.mark.parametrize("detector", DETECTORS, ids=named)
def test_a_step_leaves_the_state_before_it_as_it_was(detector):
    state = detector.start("fc", "dimension")
    for measured in measurements(series(VALUES)):
        before = copy.deepcopy(state)
        after = detector.step(state, measured)
        assert repr(state) == repr(before)
        assert repr(json.loads(json.dumps(after))) == repr(after)  # plain values; repr: NaN is equal to itself
        state = after


@pytest.mark.parametrize("detector", DETECTORS[:-1], ids=named)
def test_a_state_does_not_grow(detector):
    whole = series(noisy(np.full(400, 2.0), 1))
    states = itertools.accumulate(measurements(whole), detector.step, initial=detector.start("fc", "dimension"))
    sizes = [sum(len(one) for one in state["tracks"][0]["past"].values() if isinstance(one, list)) for state in states]
    assert sizes[-1] == sizes[100] == max(sizes)


@pytest.mark.parametrize("detector", DETECTORS, ids=named)
def test_a_failed_measurement_changes_no_verdict(detector):
    state = detector.start("fc", "dimension")
    for measured in measurements(series(WARM_UP * FAULT)):
        state = detector.step(state, measured)
    for failed in (math.nan, math.inf, -1.0):
        later = detector.step(state, Measured(1000, 100.0, failed))
        assert repr(detector.verdict(later)) == repr(detector.verdict(state))


@pytest.mark.parametrize("paired", [0.0001, 0.002, 0.03])
@pytest.mark.parametrize("detector", [DropFromReference(drop=0.05), Cusum(drop=0.05)], ids=named)
def test_the_error_of_a_lasting_decline_is_that_of_the_definition(detector, paired):
    """The smaller of two independent errors and of the sum of all changes since the reference began."""
    count, onset = 300, 60
    values, error = np.where(np.arange(count) < onset, 2.0, 1.6), 0.02
    epochs = np.arange(count, dtype=float)
    whole = Series("fc", "radius", 10 * np.arange(count), epochs, values, error * values, paired * values)
    for now in (onset, onset + 1, onset + 30, count - 1):
        verdict = detector(whole.until(10 * now))
        first = onset - min(onset - onset // 2, 40)
        expected = min(math.hypot(error, error), paired * (now - first))
        if isinstance(detector, Cusum):
            expected = max(expected, detector.least_noise)
        noise = verdict.standard_error / math.sqrt(verdict.value * verdict.reference)
        assert noise == pytest.approx(expected, rel=1e-12)


def test_the_band_of_reference_runs_looks_at_no_later_measurement():
    band, values = ReferenceRuns(GOOD), noisy(WARM_UP * FAULT, 7)
    whole = list(band.verdicts(series(values)))
    so_far = [band(series(values[: n + 1])) for n in range(len(TIME))]
    assert list(map(repr, whole)) == list(map(repr, so_far))


def test_the_band_pools_the_latest_three_variances():
    levels = np.log([[v for *_, v in ((r.step, r.value) for r in run)] for run in GOOD])
    verdict = ReferenceRuns(GOOD)(series(WARM_UP[:12]))
    pooled = levels[:, 9:12].var(axis=0, ddof=1).mean()
    noise = verdict.standard_error / math.sqrt(verdict.value * verdict.reference)
    assert noise == pytest.approx(math.sqrt(pooled * (1 + 1 / 6)), rel=1e-12)
    assert verdict.reference == pytest.approx(math.exp(levels[:, 11].mean()), rel=1e-12)


def test_a_function_of_a_series_becomes_incremental():
    drop = DropFromReference()
    assert incremental(drop) is drop
    mine = incremental(lambda one: drop(one))
    whole = series(WARM_UP * FAULT)
    assert list(map(repr, mine.verdicts(whole))) == list(map(repr, drop.verdicts(whole)))


@pytest.mark.parametrize("count", [8, 21, 60, 131])
def test_the_expected_level_is_the_theil_sen_line_through_the_recent_half(count):
    values = noisy(3 * 0.995 ** np.arange(count + 1), 4, 0.002)
    levels = np.log(values)
    recent = np.arange(max(count // 2, count - 40), count)
    slope, intercept, *_ = scipy.stats.theilslopes(levels[recent], recent)
    intercept = np.median(levels[recent] - slope * recent)
    verdict = DropFromReference(follow_trend=True, settled=0.5)(series(values))
    assert math.log(verdict.reference) == pytest.approx(slope * count + intercept, rel=1e-12)


def test_a_dead_marker_with_a_sampling_error_has_declined():
    """Relative to 0 an error has no size: it must not hide that all is gone."""
    values = np.where(TIME < 20, 2.0, 0.0)
    whole = series(values)._replace(standard_errors=np.full(len(values), 0.02))
    assert DropFromReference().declines(whole).tolist() == (TIME >= 21).tolist()


def test_a_trend_begins_where_its_window_begins():
    fall = np.where(TIME < 20, 2.0, 2.0 * 0.95 ** (TIME - 19.0))
    first = next(v for v in Trend().verdicts(series(fall)) if v.declined)
    found = int(np.argmax(Trend().declines(series(fall))))
    assert (first.since_epoch, first.since_step) == (found - 5, 10 * (found - 5))


def test_the_line_goes_on_for_as_long_again_as_it_was_seen():
    values = noisy(np.where(np.arange(120) < 40, 3.0, 1.5) * 0.99 ** np.arange(120), 4, 0.002)
    recent, end = np.arange(20, 40), 40
    slope, *_ = scipy.stats.theilslopes(np.log(values)[recent], recent)
    intercept = np.median(np.log(values)[recent] - slope * recent)
    verdict = DropFromReference(follow_trend=True, settled=0.5)(series(values))
    assert (verdict.declined, verdict.since_epoch) == (True, end)
    assert math.log(verdict.reference) == pytest.approx(intercept + slope * (2 * end - recent.mean()), rel=1e-12)
