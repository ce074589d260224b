"""Choosing settings on some runs and judging them on others: nothing of the second may reach the first."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.early_warning import simulated
from benchmarks.early_warning.calibration import (
    Rates,
    choose,
    chosen_and_new,
    of_unknown_families,
    outcomes,
    preference,
    rates,
    wilson,
)
from benchmarks.early_warning.outcomes import TRUTH
from benchmarks.early_warning.trajectories import Run, load_runs
from benchmarks.early_warning.warners import Warner, panel_warner
from geomonitor import DropFromReference
from geomonitor.alarms.panel import DEFAULT_WATCH, Panel

ONSET = 10


def made_up(family: str, seed: int, fall: float) -> Run:
    """A run whose truth falls by so much at epoch 12."""
    truth = np.where(np.arange(24) < 12, 0.9, 0.9 - fall)
    return Run(family, "mnist", seed, fall == 0, ONSET if fall else None, math.nan, "", {TRUTH: truth})


RUNS = [
    made_up(family, seed, fall)
    for family, fall in (("weight_decay", 0.1), ("forgetting", 0.1), ("constant", 0.0), ("step", 0.0))
    for seed in range(6)
]
WARNERS = [
    Warner("only decay", "", lambda run: 11 if run.family == "weight_decay" else None),
    Warner("only forgetting", "", lambda run: 11 if run.family == "forgetting" else None),
    Warner("noisy", "", lambda run: 11),
]


def test_no_seed_is_both_chosen_on_and_new():
    chosen_on, held_out = chosen_and_new(load_runs())
    assert {run.seed for run in chosen_on} == set(range(12))
    assert {(run.healthy, run.seed) for run in held_out} == {
        *((True, seed) for seed in range(28, 32)),
        *((False, seed) for seed in range(30, 36)),
    }
    assert {run.family for run in chosen_on} == {run.family for run in held_out}


def test_rates_count_what_happened():
    seen = rates(outcomes(WARNERS[0], RUNS))
    assert seen[:6] == (6, 12, 0, 12, 0, 12)
    assert seen.lead == seen.slow_lead == 1
    assert rates(outcomes(WARNERS[2], RUNS)).false == 12
    early = rates(outcomes(Warner("early", "", lambda run: 3), RUNS))
    assert (early.found, early.early) == (0, 12)


def test_a_way_that_cries_wolf_is_preferred_to_none():
    quiet, loud = (Rates(n, 12, false, 100, 0, 0, 0.0, 0.0) for n, false in ((3, 2), (12, 3)))
    assert preference(quiet, 0) > preference(loud, 1)
    assert preference(quiet, 1) > preference(quiet, 0)


def test_the_choice_sees_one_half_and_the_figures_are_of_the_other():
    chosen_on, held_out = RUNS[:6] + RUNS[12:], RUNS[6:12]  # forgetting is held out
    best = choose(WARNERS, chosen_on, held_out)
    assert best["only decay"].chosen_on.found == 6
    assert best["only decay"].held_out.found == 0
    assert best["only forgetting"].held_out.found == 6


def test_what_is_not_admissible_is_not_chosen():
    rivals = [Warner("one kind", name, warner.first_alarm) for name, warner in zip("ab", WARNERS[1:], strict=True)]
    assert choose(rivals, RUNS, RUNS)["one kind"].warner.settings == "a"  # "b" has false alarms
    assert choose(rivals, RUNS, RUNS, lambda w: w.settings == "b")["one kind"].warner.settings == "b"
    assert choose(rivals, RUNS, RUNS, lambda w: False) == {}


def test_simulated_runs_tell_a_quiet_panel_from_a_loud_one(monkeypatch):
    monkeypatch.setattr(simulated, "SIMULATED", 300)
    panel = Panel().resolve(DEFAULT_WATCH)
    watch, detector, votes = panel.watch, panel.detector, panel.votes
    assert simulated.is_quiet(panel_warner("default", detector, watch, votes))
    loud = DropFromReference(drop=0.001, sigmas=0.5, patience_checks=1)
    assert not simulated.is_quiet(panel_warner("loud", loud, watch, votes))
    assert simulated.is_quiet(WARNERS[2])  # judges no markers


def test_a_family_has_no_part_in_its_own_choice():
    found = of_unknown_families(WARNERS[:2], RUNS, RUNS)
    assert len(found) == len(RUNS)
    # Without decay "only forgetting" finds more, and the other way round: each fails on the family it did not see.
    assert sum(outcome.found for outcome in found) == 0
    assert sum(o.found for w in WARNERS[:2] for o in outcomes(w, RUNS)) == 12


@pytest.mark.parametrize(("successes", "trials", "low", "high"), [(17, 24, 0.51, 0.85), (0, 117, 0.0, 0.03)])
def test_intervals(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=0.006)
