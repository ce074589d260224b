"""Detectors on runs that decline and on runs that do not; the measurement of the alarm is asserted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geomonitor import DETECTORS, DropFromReference, History, InputError, Record, Series, Verdict
from geomonitor.alarms.verdict import judge
from geomonitor.alarms.words import explain, headline, what_changed

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


def two(dimension, cdnv) -> History:
    values = {"dimension": dimension, "cdnv": cdnv}
    return History(Record(10 * n, n, "fc", m, v[n], 0.001) for n in range(len(dimension)) for m, v in values.items())


def test_two_kinds_at_once_are_as_good_as_one_kind_twice():
    fallen, risen = 2 * FAULT[:21], 1 / FAULT[:21]  # one measurement after the onset
    steady = np.full(21, 1.0)
    both = judge(two(fallen, risen), "fc", ["dimension", "cdnv"], DropFromReference())
    assert both.declined
    assert both.since_epoch == 20
    assert both.checks == 1
    assert {both.marker, *both.agreeing} == {"dimension", "cdnv"}
    for one in (two(fallen, steady), two(steady, risen)):
        verdict = judge(one, "fc", ["dimension", "cdnv"], DropFromReference())
        assert not verdict.declined
        assert verdict.share == 0.5
    patient = DropFromReference(patience_checks=3)
    assert not judge(two(fallen, risen), "fc", ["dimension", "cdnv"], patient).declined
    assert judge(two(2 * FAULT[:22], 1 / FAULT[:22]), "fc", ["dimension", "cdnv"], patient).declined  # 2/3 + 2/3


def test_one_kind_has_one_vote_however_many_of_its_markers_fall():
    history = History(
        Record(10 * n, n, "fc", m, 2 * FAULT[n], 0.001) for n in range(21) for m in ("dimension", "radius")
    )
    lower = DropFromReference(worse="lower")
    assert not judge(history, "fc", ["dimension", "radius"], lower).declined


def test_a_count_moves_by_more_than_one_before_it_is_news():
    def ranks(after, marker="numerical_rank"):
        epochs = np.arange(40)
        return Series("fc", marker, 10 * epochs, epochs, np.where(epochs < 20, 12.0, after), np.full(40, np.nan))

    detector = DropFromReference(drop=0.05)
    assert not detector.declines(ranks(11.0)).any()  # 8 %, and always the same
    assert not detector.declines(ranks(10.0)).any()
    assert detector.declines(ranks(9.0)).any()
    assert detector.declines(ranks(11.0, "rankme")).any()  # no count: known to the last digit


def test_the_loudest_marker_speaks_for_the_layer():
    history = History(
        Record(10 * n, n, "fc", marker, 2 * FAULT[n] ** power, 0.06)
        for n in range(25)
        for marker, power in (("dimension", 1), ("rankme", 2), ("nc1", 0))
    )
    assert judge(history, "fc", ["nc1", "dimension", "rankme"], DropFromReference()).marker == "rankme"
    assert not judge(history, "fc", ["nc1"], DropFromReference()).declined


def test_the_representation_speaks_before_the_accuracy():
    history = History(
        Record(10 * n, n, "fc", marker, 2 * FAULT[n] ** power, 0.06)
        for n in range(25)
        for marker, power in (("dimension", 1), ("accuracy", 4))
    )
    verdict = judge(history, "fc", ["accuracy", "dimension"], DropFromReference(), votes=2)
    assert (verdict.declined, verdict.marker, verdict.agreeing) == (True, "dimension", ("accuracy",))
    assert judge(history, "fc", ["accuracy"], DropFromReference()).marker == "accuracy"


@pytest.mark.parametrize(
    ("marker", "agreeing", "said", "unsaid"),
    [
        ("dimension", ("mean_norm",), "nothing of accuracy on the known classes", "suffer"),
        ("dimension", ("accuracy",), "The known classes suffer, too.", "nothing of accuracy"),
        ("capacity", ("cdnv",), "harder to tell apart", "not known"),
        ("accuracy", (), "fewer points of the probe set are classified right", "transfer to new classes goes with it"),
    ],
)
def test_what_a_decline_of_each_marker_means(marker, agreeing, said, unsaid):
    text = explain(Verdict(True, "fc", marker, 0.8, 1.0, 0.01, since_step=20, checks=1, agreeing=agreeing))
    assert said in text
    assert unsaid not in text
    assert max(map(len, text.splitlines())) < 200


def test_a_rise_of_what_is_worse_when_lower_is_not_told_as_a_fall():
    for marker in ("capacity", "accuracy", "dimension"):
        verdict = Verdict(True, "fc", marker, 1.2, 1.0, 0.01, since_step=20, checks=1, direction="higher")
        assert "what it forecasts for new classes is not known" in explain(verdict)
        assert "suffer" not in explain(verdict)


def test_words():
    verdict = Verdict(True, "penultimate", "dimension", 1.2, 2.0, 0.1, since_step=216, since_epoch=8, checks=3)
    text = explain(verdict)
    for part in (headline(verdict), "40 %", "new classes", "nothing of accuracy on the known classes", "step 216"):
        assert part in text
    assert max(map(len, text.splitlines())) < 200
    assert "low since step 216" in headline(verdict._replace(since_epoch=None))


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


def told(name, *values) -> list[str]:
    records = [Record(10 * n, n, "", name, value) for n, value in enumerate(values)]
    return what_changed(History(records), since_step=10 * (len(values) - 1))


@pytest.mark.parametrize(
    ("name", "values", "changed"),
    [
        ("learning_rate", (0.1, 0.1, 0.01), ["learning_rate 0.1 -> 0.01 between steps 10 and 20"]),
        ("learning_rate", (0.1, 0.1, 0.09), []),
        ("weight_decay", (0.0, 0.0, 0.02, 0.02), ["weight_decay 0 -> 0.02 between steps 10 and 20"]),
        ("weight_decay", (0.0, 0.02, 0.02, 0.02, 0.02), []),  # long before
        ("gradient_norm", (0.6, 1.7, 0.5), []),  # of one batch: it varies so much anyhow
        ("gradient_norm", (0.6, 0.6, 12.0), ["gradient_norm 0.6 -> 12 between steps 10 and 20"]),
        ("gradient_norm", (0.6, math.nan, 0.6), []),
        ("resumed", (0.0, 0.0, 1.0), ["resumed before step 20"]),
    ],
)
def test_what_changed_just_before(name, values, changed):
    assert told(name, *values) == changed


def test_a_warning_says_what_changed_and_what_to_try():
    verdict = Verdict(True, "fc", "dimension", 1.2, 2.0, 0.1, since_step=20, checks=2)
    text = explain(verdict, told("weight_decay", 0.0, 0.0, 0.02))
    assert "Changed at that time: weight_decay 0 -> 0.02 between steps 10 and 20." in text
    assert "Try: bring the weight decay back" in text
    assert "Try" not in explain(verdict)


def test_a_rise_is_told_as_a_rise():
    verdict = Verdict(True, "fc", "nc1", 3.0, 2.0, 0.1, since_step=20, checks=1, direction="higher")
    assert "nc1 of 'fc' rose by 50 %" in headline(verdict)
    assert "what it forecasts for new classes is not known" in explain(verdict)
