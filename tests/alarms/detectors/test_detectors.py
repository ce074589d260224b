"""Every detector on series that decline and on series that do not; the measurement of the alarm is asserted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geomonitor import DETECTORS, Cusum, DropFromReference, History, InputError, Record, ReferenceRuns, Trend
from tests.alarms.detectors.synthetic import (
    COUNT,
    FAULT,
    NOISE,
    ONSET,
    RAMP,
    TIME,
    WARM_UP,
    first_alarm,
    healthy,
    noisy,
    series,
)

GOOD = [
    History(Record(10 * n, n, "fc", "dimension", float(v)) for n, v in enumerate(noisy(WARM_UP, seed, 0.02)))
    for seed in range(6)
]
BAND = ReferenceRuns(GOOD)
OWN = [DropFromReference(), Cusum(), Trend()]
"""Detectors that know nothing but the series itself."""
WITH_GAP = np.where((TIME > 15) & (TIME < 18), np.nan, 2 * FAULT)


@pytest.mark.parametrize(
    ("name", "values", "drop", "cusum", "trend"),
    [
        ("flat", np.full(COUNT, 2.0), None, None, None),
        ("noisy", noisy(np.full(COUNT, 2.0), 3), None, None, None),
        ("warm-up curve", WARM_UP, None, None, None),
        ("rise", np.linspace(1, 3, COUNT), None, None, None),
        ("step of 30 %", 2 * FAULT, 21, 22, 21),
        ("noisy step", noisy(2 * FAULT, 1), 21, 22, 21),
        ("warm-up, then a step", WARM_UP * FAULT, 21, 22, 21),
        ("step of 8 %", np.where(TIME < ONSET, 2.0, 1.84), None, None, None),
        ("single outlier", np.where(TIME == ONSET, 1.0, 2.0), None, None, None),
        ("gap of failed measurements", WITH_GAP, 21, 22, 21),
        ("failed measurement within the decline", np.where(TIME == 21, np.nan, 2 * FAULT), 22, 23, 22),
        ("slow drift, half a percent a measurement", 2 * 0.995**TIME, None, None, None),
        ("fast drift after a plateau", np.r_[np.full(20, 2.0), 2 * 0.96 ** np.arange(1, 21)], 24, 25, 23),
        ("all failed", np.full(COUNT, np.nan), None, None, None),
        ("too short", [3.0, 1.0, 1.0], None, None, None),
        ("nothing at all", [], None, None, None),
        ("never positive", -2 * FAULT, None, None, None),
        ("down to nothing", np.where(TIME < ONSET, 2.0, 0.0), 21, 22, 21),
        ("nothing from the beginning", np.zeros(COUNT), None, None, None),
    ],
)
def test_when_the_alarm_comes(name, values, drop, cusum, trend):
    assert [first_alarm(values, detector) for detector in OWN] == [drop, cusum, trend]


@pytest.mark.parametrize("detector", [*OWN, BAND], ids=lambda d: type(d).__name__)
class TestEveryDetector:
    def test_one_walk_says_what_every_measurement_would_have_said(self, detector):
        values = noisy(WARM_UP * np.r_[RAMP[:30], np.ones(10)], 5)  # a decline that ends
        values[[0, 25, 32]] = np.nan
        whole = series(values)
        one_by_one = [detector(series(values[: n + 1])).declined for n in range(COUNT)]
        assert detector.declines(whole).tolist() == one_by_one
        assert any(one_by_one)
        assert not one_by_one[-1]

    def test_missing_epochs_change_nothing_but_their_number(self, detector):
        kept = np.flatnonzero(TIME % 5 != 4)
        declined = detector.declines(series((WARM_UP * FAULT)[kept], epochs=kept))
        assert ONSET <= kept[int(np.argmax(declined))] <= ONSET + 5
        verdict = detector(series((WARM_UP * FAULT)[kept], epochs=kept))
        assert verdict.since_epoch in kept

    def test_a_resumed_run_goes_on_as_the_unbroken_one(self, detector):
        whole = History(Record(10 * n, n, "fc", "dimension", float(v)) for n, v in enumerate(WARM_UP * FAULT))
        resumed = History()
        resumed.load_state_dict(History(list(whole)[:23]).state_dict())
        resumed.append(list(whole)[23:])
        assert detector(resumed.series("fc", "dimension")) == detector(whole.series("fc", "dimension"))

    def test_a_rise_is_judged_like_a_fall(self, detector):
        if detector is BAND:
            upside_down = [History(r._replace(value=1 / r.value) for r in run) for run in GOOD]
            turned = ReferenceRuns(upside_down, worse="higher")
        else:
            turned = type(detector)(worse="higher")
        falling, rising = series(WARM_UP * FAULT, 0.0), series(1 / (WARM_UP * FAULT), 0.0)
        assert turned.declines(rising).tolist() == detector.declines(falling).tolist()
        verdict = turned(rising)
        assert (verdict.declined, verdict.direction) == (True, "higher")
        assert verdict.change > 0

    def test_the_verdict_tells_since_when_how_much_and_against_what(self, detector):
        verdict = detector(series((WARM_UP * FAULT)[:25]))
        assert verdict.declined
        assert 15 <= verdict.since_epoch <= 21
        assert verdict.since_step == 10 * verdict.since_epoch
        assert verdict.change == pytest.approx(-0.3, abs=0.03)
        assert verdict.value == pytest.approx((WARM_UP * FAULT)[24])

    def test_a_long_series_is_judged_in_a_moment(self, detector):
        values = noisy(np.full(4_000, 2.0), 0)
        detector(series(values[:1000]))  # the limit is generous: one walk of 4,000 takes a tenth of a second
        import time

        started = time.process_time()
        detector(series(values))
        assert time.process_time() - started < 3


def test_a_dead_network_is_told_as_a_fall_of_all_there_was():
    values = np.where((TIME >= ONSET) & (TIME < 25), 0.0, 80.0)  # of a rank, without errors, and with
    for errors in (math.nan, 0.03):
        dead = series(values[:24], errors, marker="numerical_rank")
        verdict = DropFromReference()(dead)
        assert (verdict.declined, verdict.value, verdict.change) == (True, 0.0, -1.0)
        assert verdict.reference == pytest.approx(80)
        assert not DropFromReference()(series(values, errors, marker="numerical_rank")).declined  # it came back
    assert not DropFromReference(worse="higher").declines(series(np.where(TIME < ONSET, 2.0, 0.0), 0.0)).any()


@pytest.mark.parametrize("detector", OWN, ids=lambda d: type(d).__name__)
def test_false_alarms_on_a_thousand_healthy_runs_are_rare(detector):
    alarms = sum(detector.declines(series(healthy(seed))).any() for seed in range(1_000))
    assert alarms <= 20  # the bound is one run in fifty; an alarm at any of the 40 measurements counts


@pytest.mark.parametrize("detector", [*OWN, BAND], ids=lambda d: type(d).__name__)
def test_faulty_runs_are_found(detector):
    late = ONSET + 10
    fault = np.r_[np.ones(10), (RAMP if isinstance(detector, Trend) else FAULT)[:-10]]  # a trend test is for trends
    first = [int(np.argmax(detector.declines(series(noisy(WARM_UP * fault, seed))))) for seed in range(100)]
    assert sum(late <= alarm <= late + 5 for alarm in first) >= 95


@pytest.mark.parametrize("detector", [DropFromReference(), Cusum()], ids=lambda d: type(d).__name__)
def test_a_fault_while_the_classes_still_form_is_found_less_often(detector):
    # At the onset the level still falls by 1.5 % within the recent half, with a noise of 2 %: warm-up for some.
    first = [int(np.argmax(detector.declines(series(noisy(WARM_UP * FAULT, seed))))) for seed in range(100)]
    assert sum(ONSET <= alarm <= ONSET + 5 for alarm in first) >= 80
    assert not any(0 < alarm < ONSET for alarm in first)


class TestReferenceRuns:
    def test_a_fall_that_every_good_run_has_is_none(self):
        cliff = np.where(TIME < 10, 4.0, 2.0)  # a schedule halves it in every run
        good = [
            History(Record(10 * n, n, "fc", "dimension", float(v)) for n, v in enumerate(noisy(cliff, seed, 0.02)))
            for seed in range(6)
        ]
        fresh = series(noisy(cliff, 99, 0.02))
        assert not ReferenceRuns(good).declines(fresh).any()
        assert DropFromReference().declines(fresh).any()
        late = series(noisy(np.where(TIME < 10, 4.0, np.where(TIME < 25, 2.0, 1.6)), 99, 0.02))
        assert int(np.argmax(ReferenceRuns(good).declines(late))) == 26

    def test_false_alarms_are_as_rare_as_the_coverage_says(self):
        # Each of 40 measurements may leave the band; two in a row are needed. Bound: one run in fifty.
        band = [ReferenceRuns(_runs(20 * trial, 8)) for trial in range(20)]
        alarms = sum(
            one.declines(series(noisy(WARM_UP, 10_000 + 100 * trial + n, 0.02))).any()
            for trial, one in enumerate(band)
            for n in range(25)
        )
        assert alarms <= 10

    def test_nothing_is_said_beyond_the_end_of_the_other_runs(self):
        short = [History(list(run)[:15]) for run in GOOD]
        fallen = np.where(TIME < 15, WARM_UP, 0.1)
        assert not ReferenceRuns(short).declines(series(fallen)).any()
        assert ReferenceRuns(GOOD).declines(series(fallen)).any()

    def test_another_cadence_is_read_between_the_measurements(self):
        sparse = [History(list(run)[::2]) for run in GOOD]
        declined = ReferenceRuns(sparse).declines(series(noisy(WARM_UP * FAULT, 1)))
        assert int(np.argmax(declined)) == 21

    def test_files_and_their_protocol(self, tmp_path):
        for number, run in enumerate(GOOD):
            file = History(run)
            (tmp_path / str(number)).mkdir()
            file.open(tmp_path / str(number) / "geometry.csv", protocol={"seed": 0, "probe": "abc"})
        band = ReferenceRuns(str(tmp_path / "*" / "geometry.csv"))
        assert len(band.runs) == 6
        assert band(series(WARM_UP * FAULT)).declined
        band.check_protocol({"seed": 0, "probe": "abc"})
        with pytest.raises(InputError, match="probe differ"):
            band.check_protocol({"seed": 0, "probe": "other"})

    def test_too_few_runs_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="at least 3"):
            ReferenceRuns(GOOD[:2])
        with pytest.raises(InputError, match=r"0 run\(s\)"):
            ReferenceRuns(str(tmp_path / "*.csv"))


class TestNoise:
    def test_a_drop_within_the_noise_is_none(self):
        assert first_alarm(2 * FAULT, DropFromReference(), errors=0.2) is None

    def test_the_paired_error_of_each_change_finds_what_independent_errors_hide(self):
        known = series(2 * FAULT, errors=0.2)
        paired = known._replace(change_errors=0.01 * known.values)
        assert not DropFromReference().declines(known).any()
        assert int(np.argmax(DropFromReference().declines(paired))) == 21

    def test_the_scatter_of_the_series_is_noise_too(self):
        wild = np.where(TIME % 2, 2.6, 2.0) * np.where(TIME < ONSET, 1.0, 0.8)
        assert first_alarm(wild, DropFromReference(), errors=0.0) is None

    def test_sigmas_are_those_of_the_logarithms(self):
        verdict = DropFromReference()(series(2 * FAULT[:25]))
        assert verdict.sigmas == pytest.approx(-math.log(0.7) / (NOISE * math.sqrt(2)), rel=0.01)


class TestDropFromReference:
    def test_a_finer_cadence_needs_a_longer_warm_up(self):
        often = 2 + 2 * np.exp(-np.arange(400) / 30)  # the same early fall, measured ten times as often
        assert first_alarm(often, DropFromReference(warmup_checks=100)) is None

    def test_a_restless_series_of_few_measurements_still_shows_its_fault(self):
        # A run of the demo: four differences alone would take its scatter for half of the drop.
        restless = [3.57, 2.02, 1.90, 1.82, 1.94, 1.92, 1.76, 1.96, 1.81, 1.44, 1.33, 1.30, 1.32, 1.19]
        assert first_alarm(restless, DropFromReference()) == 10

    def test_the_alarm_stays_until_recovery_and_comes_again(self):
        values = np.r_[np.full(40, 2.0), np.full(10, 1.2), np.full(20, 2.0), np.full(3, 1.2)]
        alarms = DropFromReference().declines(series(values))
        assert np.flatnonzero(np.diff(alarms)).tolist() == [40, 49, 70]

    def test_a_trend_that_goes_on_is_expected(self):
        falling = 4 * 0.98**TIME
        plain, following = (DropFromReference(drop=0.15, warmup_checks=4, follow_trend=f) for f in (False, True))
        assert plain.declines(series(falling)).any()
        assert not following.declines(series(falling)).any()
        assert following.declines(series(falling * FAULT)).any()

    def test_without_epochs_the_step_is_known(self):
        known = series(2 * FAULT[:25])
        verdict = DropFromReference()(known._replace(epochs=np.full(25, np.nan)))
        assert (verdict.since_step, verdict.since_epoch) == (200, None)


class TestCusum:
    def test_small_falls_add_up(self):
        small = np.where(TIME < ONSET, 2.0, 1.7)  # 15 %, less than three standard errors of a single difference
        assert first_alarm(small, DropFromReference(), errors=0.05) is None
        assert first_alarm(small, Cusum(), errors=0.05) is not None


def test_the_registry_makes_detectors_by_name():
    assert DETECTORS["drop_from_reference"](drop=0.2) == DropFromReference(drop=0.2)
    assert {"cusum", "trend", "reference_runs"} < set(DETECTORS)


@pytest.mark.parametrize(
    ("detector", "option"),
    [
        *((DropFromReference, {name: value}) for name, value in (("drop", 0), ("drop", 1.5), ("sigmas", -1))),
        *((DropFromReference, {name: 0}) for name in ("patience_checks", "warmup_checks")),
        *((Cusum, {name: 0}) for name in ("threshold", "least_noise", "drop", "warmup_checks")),
        *((Trend, {name: value}) for name, value in (("window", 3), ("drop", 1), ("steeper", 0.5), ("sigmas", -1))),
        *((kind, {"worse": "sideways"}) for kind in (DropFromReference, Cusum, Trend)),
    ],
)
def test_options_without_sense_are_refused(detector, option):
    with pytest.raises(InputError):
        detector(**option)


def _runs(first_seed: int, count: int) -> list[History]:
    return [
        History(Record(10 * n, n, "fc", "dimension", float(v)) for n, v in enumerate(noisy(WARM_UP, seed, 0.02)))
        for seed in range(first_seed, first_seed + count)
    ]
