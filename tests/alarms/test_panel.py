"""What is judged by default, and how often that is wrong on runs that are healthy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from geomonitor import MARKER_GROUPS, Cusum, DropFromReference, InputError
from geomonitor.alarms.detectors import AgreeingDrop
from geomonitor.alarms.panel import AGREEING, ALONE, DEFAULT_WATCH, VOTES, Panel
from geomonitor.alarms.votes import enough_votes
from tests.alarms.detectors.simulated_runs import as_series, healthy_run
from tests.alarms.detectors.synthetic import COUNT, FAULT, ONSET, TIME, series


def resolved(measured, watch=None, detector="auto", votes=None, **settings) -> Panel:
    return Panel(watch, detector, votes).resolve(measured, **settings)


def test_by_default_families_have_to_agree():
    assert Panel().resolve(MARKER_GROUPS["default"]) == Panel(DEFAULT_WATCH, AGREEING, VOTES)


@pytest.mark.parametrize(
    ("measured", "options", "watch", "detector", "votes"),
    [
        (["dimension", "utility"], {}, ("dimension",), ALONE, 1),
        (["dimension", "numerical_rank"], {}, ("dimension", "numerical_rank"), ALONE, 1),
        (["dimension", "numerical_rank", "cdnv"], {}, ("dimension", "numerical_rank", "cdnv"), AGREEING, VOTES),
        (DEFAULT_WATCH, {"votes": 1}, DEFAULT_WATCH, ALONE, 1),
        (DEFAULT_WATCH, {"watch": ["nc1", "dimension"]}, ("nc1", "dimension"), ALONE, 1),
        (DEFAULT_WATCH, {"watch": ["nc1", "dimension"], "votes": 2}, ("nc1", "dimension"), AGREEING, 2),
        (DEFAULT_WATCH, {"detector": "cusum"}, DEFAULT_WATCH, Cusum(), VOTES),
        (DEFAULT_WATCH, {"detector": "cusum", "drop": 0.2}, DEFAULT_WATCH, Cusum(drop=0.2), VOTES),
        (["dimension"], {"drop": 0.2}, ("dimension",), DropFromReference(drop=0.2), 1),
        ([], {}, (), ALONE, 1),
    ],
)
def test_what_the_user_leaves_open_is_filled_in(measured, options, watch, detector, votes):
    panel = resolved(measured, **options)
    assert (panel.watch, panel.detector, panel.votes) == (tuple(watch), detector, votes)
    assert panel.resolve(()) == panel  # complete


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"detector": "nothing"}, "no detector is called"),
        ({"detector": 3}, "a function of a Series"),
        ({"detector": AGREEING, "drop": 0.2}, "without further settings"),
        ({"dorp": 0.2}, "does not take these settings"),
        ({"drop": 2}, "drop lies in"),
        ({"votes": 6}, "5 famil"),
    ],
)
def test_bad_input(options, told):
    with pytest.raises(InputError, match=told):
        resolved(DEFAULT_WATCH, **options)


def healthy(seed: int) -> dict[str, np.ndarray]:
    return healthy_run(seed, DEFAULT_WATCH)


def alarms(run: dict[str, np.ndarray]) -> np.ndarray:
    """Whether the default panel has its alarm on after each measurement."""
    panel = Panel().resolve(list(run))
    shares = [panel.detector.shares(as_series(name, run[name])) for name in panel.watch]
    return enough_votes(panel.watch, shares, panel.votes)


def test_false_alarms_on_a_thousand_healthy_runs_are_rare():
    assert sum(alarms(healthy(seed)).any() for seed in range(1_000)) <= 20  # one run in fifty


def test_a_fault_that_two_families_show_is_found_at_once():
    first, onset = [], ONSET + 10  # by then the classes have formed in all of them
    for seed in range(100):
        run = healthy(seed)
        run["dimension"] = run["dimension"] * np.where(TIME < onset, 1.0, 0.7)
        run["mean_norm"] = run["mean_norm"] * np.where(TIME < onset, 1.0, 0.8)
        found = alarms(run)
        first.append(int(np.argmax(found)) if found.any() else None)
    assert sum(alarm in (onset, onset + 1) for alarm in first) >= 90


@pytest.mark.parametrize(
    ("marker", "fall", "share"),
    [
        ("mean_norm", 0.04, 1.0),  # plain
        ("mean_norm", 0.03, 0.5),  # pending
        ("mean_norm", 0.02, 0.0),
        ("dimension", 0.04, 1.0),
    ],
)
def test_how_far_a_marker_has_to_fall_for_its_vote(marker, fall, share):
    shares = AGREEING.shares(series(np.where(TIME < ONSET, 2.0, 2.0 * (1 - fall)), 0.0, marker=marker))
    assert shares[ONSET - 1 : ONSET + 1].tolist() == [0.0, share]
    assert shares[ONSET + 1] == (share > 0)  # twice is enough
    assert (
        AGREEING(series(np.where(TIME < ONSET, 2.0, 2.0 * (1 - fall))[: ONSET + 1], 0.0, marker=marker)).share == share
    )


def test_a_plain_measurement_needs_no_second_one_until_the_decline_ends():
    values = np.array([2.0] * 20 + [1.9, 1.945, 1.945, 2.0, 1.945])
    assert AGREEING.shares(series(values, 0.0, marker="mean_norm"))[20:].tolist() == [1.0, 1.0, 1.0, 0.0, 0.5]


def test_a_wider_limit_of_the_user_holds_for_every_marker():
    detector = resolved(DEFAULT_WATCH, drop=0.15).detector
    for marker in ("dimension", "mean_norm"):
        values = np.where(TIME < ONSET, 2.0, 1.76)  # 12 %
        assert not detector.declines(series(values, 0.0, marker=marker)).any()


@pytest.mark.parametrize(("fall", "once", "four_times"), [(0.027, 0.5, 0.0), (0.033, 0.5, 0.5), (0.04, 1.0, 0.5)])
def test_a_marker_has_to_fall_further_where_it_is_measured_often(fall, once, four_times):
    steps = series(np.where(TIME < 30, 2.0, 2.0 * (1 - fall)), 0.0, marker="mean_norm")
    assert AGREEING.shares(steps)[30] == once
    assert AGREEING.shares(steps._replace(epochs=TIME // 4))[30] == four_times


def test_wide_limits_stay_limits_where_it_is_measured_often():
    gone = series(np.where(TIME < 30, 2.0, 0.001), 0.0, marker="mean_norm")._replace(epochs=TIME // 4)
    assert AgreeingDrop(drop=0.95).declines(gone)[31]
    assert AgreeingDrop(sigmas=0).limits(4) == (pytest.approx(0.025), 0)


def test_two_families_at_once_leave_an_epoch_the_chance_of_one_measurement():
    once, four_times = (AGREEING.limits(an_epoch)[1] for an_epoch in (1, 4))
    assert 4 * norm.sf(four_times) ** 2 == pytest.approx(norm.sf(once) ** 2)


@pytest.mark.parametrize("marker", ["dimension", "utility"])
def test_what_falls_while_the_classes_tighten_may_go_on_as_before(marker):
    falling = 2.0 * np.exp(-0.005 * TIME)
    assert not AGREEING.shares(series(falling, 0.0, marker=marker)).any()
    assert AGREEING.declines(series(falling, 0.0, marker="mean_norm"))[ONSET:].all()  # of others it is news
    faster = np.where(TIME < ONSET, falling, falling * np.exp(-0.02 * (TIME - ONSET)))
    alarms = AGREEING.declines(series(faster, 0.0, marker=marker))
    assert not alarms[:ONSET].any()
    assert alarms[ONSET + 2]


def test_a_fault_that_one_family_shows_is_no_alarm():
    run = dict.fromkeys(DEFAULT_WATCH, np.full(COUNT, 2.0))
    assert not alarms(run | {"dimension": run["dimension"] * FAULT, "capacity": run["capacity"] * FAULT}).any()


def test_another_family_seldom_joins_in_by_chance():
    found = np.zeros(COUNT)
    for seed in range(200):
        run = healthy(seed)
        run["dimension"] = run["dimension"] * FAULT
        run["capacity"] = run["capacity"] * FAULT  # of the same family
        found += alarms(run)
    assert found[ONSET] <= 7  # one of the other families is low by chance
    assert found.max() <= 15
