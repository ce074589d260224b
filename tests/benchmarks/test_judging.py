"""Verdicts of a run as it goes on equal those of its replay, on cached runs; ``judging --runs`` takes all of them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.early_warning.trajectories import load_runs
from benchmarks.early_warning.within_epochs import load_fine
from benchmarks.judging import differences

SAMPLE = {"once an epoch": 60, "four times an epoch": 12}


@pytest.mark.parametrize("pace", SAMPLE)
def test_online_verdicts_equal_those_of_a_replay_to_the_digit(pace):
    runs = load_runs() if pace == "once an epoch" else [fine.often for fine in load_fine()]
    chosen = np.random.default_rng(0).choice(len(runs), SAMPLE[pace], replace=False)
    assert list(differences(runs[place] for place in chosen)) == []
