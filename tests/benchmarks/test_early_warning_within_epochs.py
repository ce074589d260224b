"""Runs measured four times an epoch: when the truth falls, when the alarm comes, and what is told of it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from benchmarks.early_warning import warners
from benchmarks.early_warning.outcomes import TRUTH
from benchmarks.early_warning.tables import short
from benchmarks.early_warning.trajectories import CHECKS, Run, load_runs
from benchmarks.early_warning.warners import Warner, judge_beforehand, panel_warner
from benchmarks.early_warning.within_epochs import (
    Fine,
    by_way,
    choose_at_this_pace,
    of_failing,
    of_healthy,
    rates_of,
)
from geomonitor import DropFromReference

SEEDS = itertools.count()
MOMENTS = np.arange(1, 24 * CHECKS + 1) / CHECKS - 1
NORM = panel_warner("norm", DropFromReference(drop=0.07), ("mean_norm",), 1)


def made_up(falls_after: float, drops_after: float) -> Fine:
    """The fault is there from epoch 10 on; the truth and a marker fall after these moments. The truth begins low."""
    columns = {
        "epoch": MOMENTS,
        "step": np.arange(len(MOMENTS)),
        TRUTH: np.select([MOMENTS < 2, MOMENTS > falls_after], [0.5, 0.8], 0.9),
        "mean_norm": np.where(MOMENTS > drops_after, 1.0, 2.0) * np.exp(0.001 * np.sin(np.arange(len(MOMENTS)))),
    }
    ends = {name: values[MOMENTS % 1 == 0] for name, values in columns.items()}
    healthy, seed = math.isinf(falls_after), next(SEEDS)  # judgements are kept by the name of a run
    often, run = (
        Run("constant" if healthy else "lr_kill", "mnist", seed, healthy, None if healthy else 10, math.nan, "", part)
        for part in (columns, ends)
    )
    return Fine(often, run)


@pytest.mark.parametrize(("falls_after", "half"), [(9.0, 9.25), (9.6, 9.75), (14.25, 14.5)])
def test_the_moment_of_the_fall(falls_after, half):
    of = made_up(falls_after, 9.0)
    assert of.started == 9
    assert of.half == half


def test_the_moment_of_the_alarm():
    of = made_up(12.0, 10.0)
    assert of.alarm(NORM) == 10.5  # the second low measurement
    assert math.isnan(made_up(12.0, math.inf).alarm(NORM))
    assert (of.truth_at(12.0), of.truth_at(12.3), of.truth_at(math.nan)) == (0.9, 0.8, 0.8)


def test_the_tables():
    runs = [made_up(12.0, 10.0), made_up(9.0, 9.0), made_up(12.0, math.inf), made_up(math.inf, math.inf)]
    runs += [made_up(math.inf, 12.0), made_up(12.0, 7.5)]  # false alarms, one of them before the fault
    assert "| lr_kill | 4 | 2 | 2 | +0.0 | +0.8 | +3.0 |" in of_failing(NORM, runs)
    assert "| four times an epoch | 1 of 2" in of_healthy(NORM, runs)
    told = by_way({"norm": NORM}, runs)
    settings = f"| norm | `{short(NORM.settings)}` "
    assert settings + "| 2 of 4 (15-85 %) | 1 of 2 (9-91 %) | 1 of 4 | +0.8 | +1.8 | 0.850 | 0.850 | 0.800 |" in told


def test_settings_are_chosen_at_this_pace():
    runs = [made_up(12.0, 10.0), made_up(9.0, 9.0), made_up(math.inf, math.inf)]
    ways = [panel_warner("norm", DropFromReference(drop=drop), ("mean_norm",), 1) for drop in (0.6, 0.07, 0.2)]
    ways += [Warner("hasty", "", lambda run: 3), Warner("blind", "", lambda run: None)]
    chosen = choose_at_this_pace(ways, runs)
    assert [*chosen] == ["norm", "blind", "hasty"]
    assert chosen["norm"].detectors["mean_norm"].drop in (0.07, 0.2)  # found at either
    assert rates_of(chosen["norm"], runs)[:4] == (2, 2, 0, 1)
    assert rates_of(chosen["hasty"], runs)[:6] == (0, 2, 1, 1, 2, 2)


def test_where_epochs_are_not_known_the_warm_up_is_soon_over():
    dips = made_up(math.inf, math.inf)
    dips.often.columns["mean_norm"][(MOMENTS > 2) & (MOMENTS < 3)] *= 0.8
    assert math.isnan(dips.alarm(NORM))
    assert dips.alarm_if_epochs_were_not_known(NORM) == 2.5  # the second low measurement


def test_runs_that_are_judged_beforehand_have_the_same_alarms():
    runs = load_runs()[:8]
    drop = panel_warner("drop", DropFromReference(drop=0.05), ("mean_norm", "cdnv"), 1)
    alarms = [drop.first_alarm(run) for run in runs]
    warners._SHARES.clear()
    judge_beforehand([drop], runs)
    assert len(warners._SHARES) == 16
    assert [drop.first_alarm(run) for run in runs] == alarms
