"""The table of docs/carry_over.md, from the cached runs: a change of the default panel shows here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.early_warning.trajectories import CHECKS
from benchmarks.elsewhere.harm import harm_of
from benchmarks.elsewhere.recipes import FAMILIES, PLAIN, PLANNED, recipe
from benchmarks.elsewhere.report import (
    AN_EPOCH,
    all_runs,
    cheap,
    fresh_runs,
    in_epochs,
    in_time,
    lead_of,
    measured_often,
    often,
    outcome,
    rates,
    ratio_of,
    row,
    tuned,
)
from benchmarks.elsewhere.runs import FRESH, LATER, TUNED, load
from geomonitor.alarms.harm import ALARMS_IN_THE_BENCH, NOTICES_IN_THE_BENCH, SILENT_IN_THE_BENCH

PAGE = (Path(__file__).parents[2] / "docs/carry_over.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outcomes():
    return [outcome(run) for run in load()]


def test_the_figures_of_the_new_tasks(outcomes):
    harmed = [o for o in outcomes if o.harm is not None]
    fine = [o for o in outcomes if o.harm is None]
    assert (len(harmed), len(fine)) == (46, 290)
    assert sum(in_time(o.harm, o.alarm) for o in harmed) == 19
    assert sum(o.alarm is not None for o in fine) == 3
    plain = [o for o in fine if o.run.family in PLAIN]
    assert (sum(o.alarm is not None for o in plain), len(plain)) == (0, 108)
    planned = [o for o in fine if o.run.family in PLANNED]
    assert sum(o.announced is not None for o in planned) == 0
    assert row("**alarm, five new tasks**", outcomes, lambda o: o.alarm) in PAGE
    assert row("notice, five new tasks", outcomes, lambda o: o.notice) in PAGE


def test_the_figures_of_all_tasks_and_the_rates_that_warnings_quote(outcomes):
    old = [outcome(run) for run in all_runs() if "plateau" not in run.columns]
    found = rates([*outcomes, *old])
    assert found == {"alarm": ALARMS_IN_THE_BENCH, "notice": NOTICES_IN_THE_BENCH, "neither": SILENT_IN_THE_BENCH}
    fine = [o for o in (*outcomes, *old) if o.harm is None]
    assert (sum(o.alarm is not None for o in fine), len(fine)) == (90, 1988)


def test_measured_four_times_an_epoch_no_run_without_harm_has_an_alarm():
    harms = [(run, harm_of(run.columns)) for run in measured_often()]
    fine = [often(run) for run, harm in harms if harm is None]
    large = [often(run) for run, harm in harms if harm is not None and harm.depth >= 0.1]
    assert (sum(o.alarm is not None for o in fine), len(fine)) == (0, 529)
    assert (sum(in_time(o.harm, o.alarm, CHECKS) for o in large), len(large)) == (66, 100)


def test_a_panel_without_the_geometry_finds_nearly_as_much_on_new_tasks():
    found = [cheap(run) for run in load()]
    assert sum(o.harm is not None and in_time(o.harm, o.alarm) for o in found) == 17
    assert sum(o.harm is None and o.alarm is not None for o in found) == 2


def test_fine_tuning_runs_judged_from_their_first_measurement_on():
    found = [tuned(run) for run in load() if run.task == "minilm"]
    assert (sum(o.alarm is not None for o in found if o.harm is None), len(found)) == (0, 64)


def test_the_figures_of_a_second_task_with_pretrained_weights():
    default, pretrained = ([judged(run) for run in load(TUNED)] for judged in (in_epochs, tuned))
    assert (
        row("**alarm, a second task with pretrained weights (`lite`)**", default, lambda o: o.alarm, AN_EPOCH) in PAGE
    )
    assert row("`lite`, `pretrained=True`", pretrained, lambda o: o.alarm, AN_EPOCH) in PAGE
    assert row("notice, `lite`, `pretrained=True`", pretrained, lambda o: o.notice, AN_EPOCH) in PAGE
    both = [tuned(run) for run in [*load(), *load(FRESH)] if run.task == "minilm"] + pretrained
    fine = [o for o in both if o.harm is None]
    assert (sum(o.notice is not None for o in fine), len(fine)) == (27, 129)
    assert (sum(o.alarm is not None for o in fine), len(both) - len(fine)) == (1, 7)


def test_the_figures_of_the_task_that_was_opened_after_all_settings():
    found = [outcome(run) for run in load(LATER)]
    harmed = [o for o in found if o.harm is not None]
    assert (len(harmed), len(found)) == (24, 68)
    assert sum(in_time(o.harm, o.alarm) for o in harmed) == 4
    assert sum(o.alarm is not None for o in found if o.harm is None) == 0


def test_the_figures_of_new_seeds_that_were_opened_after_all_settings():
    found = [outcome(run) for run in fresh_runs()]
    assert len({run.task for run in fresh_runs()}) == 9
    harmed = [o for o in found if o.harm is not None]
    assert (len(harmed), len(found)) == (57, 306)
    assert sum(in_time(o.harm, o.alarm) for o in harmed) == 21
    assert sum(o.alarm is not None for o in found if o.harm is None) == 7
    assert sum(o.announced is not None for o in found if o.harm is None) == 4
    assert row("**alarm, new seeds of all nine tasks, opened after all settings**", found, lambda o: o.alarm) in PAGE


def test_no_new_seed_is_an_old_run():
    known = {(run.task, run.family, run.seed) for run in [*all_runs(), *load(LATER)]}
    assert not known & {(run.task, run.family, run.seed) for run in fresh_runs()}


def test_the_interval_of_a_likelihood_ratio_by_resampling():
    draw = np.random.default_rng(0)
    found, false = draw.binomial(60, 24 / 60, 20_000), draw.binomial(300, 15 / 300, 20_000)
    low, high = np.quantile((found / 60) / (np.maximum(false, 0.5) / 300), (0.025, 0.975))
    ratio, lower, upper = ratio_of(24, 60, 15, 300)
    assert ratio == pytest.approx(8)
    assert lower == pytest.approx(low, rel=0.15)
    assert upper == pytest.approx(high, rel=0.15)


def test_the_lead_of_equal_runs_has_no_spread():
    assert lead_of([2, 2, 2]) == "+2.0 (+2.0 to +2.0)"
    assert lead_of([-1, 0, 5]).startswith("+0.0 (-1.0 to +5.0)")


@pytest.mark.parametrize(
    ("late", "first", "half", "depth"),
    [
        ([0.8] * 4, 8, 8, 0.1),
        ([0.86, 0.84, 0.82, 0.8], 8, 8, 0.08),
        ([0.8, 0.9, 0.9, 0.9], None, None, None),  # one measurement alone
        ([0.88] * 4, None, None, None),  # too small
        ([0.866, 0.864, 0.82, 0.8], 8, 10, 0.08),  # half of it is there from the third one on
    ],
)
def test_harm_by_hand(late, first, half, depth):
    found = harm_of({"unseen_accuracy": np.array([0.9] * 8 + late)})
    if first is None:
        assert found is None
    else:
        assert found is not None
        assert (found.first, found.half) == (first, half)
        assert found.depth == pytest.approx(depth)


def test_every_family_has_a_recipe_with_an_onset_within_the_run():
    for family in FAMILIES:
        onset = recipe(family, "minilm", 0).onset
        assert onset is None if family in PLAIN else 0 <= onset < 16
