"""The tables of endings in docs/ranking.md, from the cached runs, and that they end as CheckpointKeeper does."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.elsewhere import endings as endings_module
from benchmarks.elsewhere.endings import (
    PATIENCE,
    POLICIES,
    early_stopping,
    ending,
    geometry_checkpoint,
    interval,
    table,
)
from benchmarks.elsewhere.report import fresh_runs, verdicts
from benchmarks.elsewhere.runs import LATER, Run, load
from geomonitor import Panel
from geomonitor._distributed import Processes
from geomonitor.alarms.panel import DEFAULT_WATCH
from geomonitor.alarms.verdict import Verdict
from geomonitor.decide.keeper import CheckpointKeeper


@pytest.fixture(scope="module")
def endings():
    return [ending(run) for run in [*load(), *load(LATER)]]


def mean(endings, policy):
    return 100 * float(np.mean([e.gain(policy) for e in endings]))


def test_the_figures_of_the_six_newer_tasks(endings):
    harmed, fine = [e for e in endings if e.harmed], [e for e in endings if not e.harmed]
    assert (len(harmed), len(fine), sum(e.healthy for e in endings)) == (70, 334, 176)
    found = {policy: (mean(harmed, policy), mean(fine, policy)) for policy in POLICIES}
    expected = {
        "best_loss": (10.8, 0.0),
        "both": (10.7, 0.0),
        "val_loss": (12.0, -0.3),
        "val_accuracy": (11.0, -1.3),
        "stop": (6.7, 0.0),
        "restore": (5.9, 0.0),
    }
    for policy, figures in expected.items():
        assert found[policy] == pytest.approx(figures, abs=0.051), policy
    assert sum(e.kept["stop"] < len(e.run.columns["unseen_accuracy"]) - 1 for e in fine) == 3


def test_the_table_has_the_rows_of_the_page(endings):
    page = (Path(__file__).parents[2] / "docs/ranking.md").read_text(encoding="utf-8")
    for line in (*table(endings), *table([ending(run) for run in fresh_runs()])):
        assert line in page


@pytest.mark.parametrize(("alarm", "kept"), [(None, 5), (2, 2), (3, 3)])
def test_the_best_loss_from_before_the_decline(monkeypatch, alarm, kept):
    losses = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    columns = dict.fromkeys(("val_loss", "val_accuracy", "unseen_accuracy"), losses)
    monkeypatch.setattr(endings_module, "verdicts", lambda *_: [])
    monkeypatch.setattr(endings_module, "geometry_checkpoint", lambda *_, **__: 5 if alarm is None else alarm)
    found = ending(Run("t", "f", 0, None, columns)).kept
    assert (found["both"], found["best_loss"]) == (kept, 5)


def kept_by_keeper(run, folder, *, stop):
    """Measurement whose model the real keeper goes back to, with files; the last one if it does not."""
    monitor = SimpleNamespace(
        panel=Panel(), verdicts={}, processes=Processes(), last_healthy=None, new_alarms=[],
        history=SimpleNamespace(measurements=0, note=lambda *_: None),
    )  # fmt: skip
    own = SimpleNamespace(monitor=monitor, after_measurement=[], last_step=None, failed=False)
    keeper, loaded = CheckpointKeeper(restore=True), []
    keeper.start(own)
    step = 0
    for step, verdict in verdicts(run, Panel().resolve(DEFAULT_WATCH)):
        monitor.verdicts, own.last_step = {"features": verdict}, step
        own.after_measurement[0]()
        if step % 2 == 0:
            path = folder / f"step_{step}.pt"
            path.write_text(str(step))
            keeper.saved(path, step=step)
        if stop and verdict.declined:
            break
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is nothing to go back to
        keeper.finish(load=lambda path: loaded.append(int(path.read_text())))
    return (loaded[0] if loaded else step) // 2


@pytest.mark.parametrize("stop", [True, False])
def test_the_replay_ends_as_the_keeper_does(tmp_path, endings, stop):
    policy = "stop" if stop else "restore"
    acted = [e for e in endings if e.kept["stop"] != len(e.run.columns["unseen_accuracy"]) - 1]
    assert len(acted) > 20
    for number, e in enumerate([*acted, *endings[:20]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert kept_by_keeper(e.run, folder, stop=stop) == e.kept[policy]


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([3, 2, 1, 0], 3),
        ([1, 2, 3, 4, 0], 0),  # stopped before the better one
        ([1, 2, 3, 0, 4], 3),  # two worse ones in a row are within the patience
        ([1, 1, 1, 1, 0], 0),  # equal is no improvement
        ([2, 1, float("nan"), 0], 1),  # EarlyStopping stops at a number that is not finite
    ],
)
def test_early_stopping_by_hand(values, best):
    assert early_stopping(np.array(values, dtype=float)) == best


def test_early_stopping_is_that_of_lightning():
    import torch
    from lightning.pytorch.callbacks import EarlyStopping

    values = np.random.default_rng(0).normal(size=(30, 25)) - np.linspace(0, 2, 25)
    for series in values:
        stopping = EarlyStopping("val_loss", patience=PATIENCE, min_delta=0.0)
        seen = []
        for value in series:
            seen.append(value)
            if stopping._evaluate_stopping_criteria(torch.tensor(value))[0]:
                break
        assert early_stopping(series) == int(np.argmin(seen))


def test_a_run_without_an_alarm_keeps_its_last_model(endings):
    run = next(e.run for e in endings if e.kept["stop"] == len(e.run.columns["unseen_accuracy"]) - 1)
    judged = list(verdicts(run, Panel().resolve(DEFAULT_WATCH)))
    assert geometry_checkpoint(judged, stop=False) == judged[-1][0] // 2


@pytest.mark.parametrize(
    ("since", "stopped", "restored"),
    [
        ((None, None, 4, 4), 1, 1),
        ((None, None, 2, 2), 2, 3),  # the healthy one is of the step at which the decline began
        ((0, 0, 0, 0), 0, 3),  # none is healthy
        ((None, 2, None, None), 0, 3),  # a decline that is over at the end
    ],
)
def test_the_last_healthy_one_from_before_the_decline_by_hand(since, stopped, restored):
    judged = [
        (2 * check, Verdict(first is not None, "features", "", since_step=first, checks=int(first is not None)))
        for check, first in enumerate(since)
    ]
    assert geometry_checkpoint(judged, stop=True) == stopped
    assert geometry_checkpoint(judged, stop=False) == restored


def test_the_interval_holds_the_mean_and_shrinks_with_runs():
    draw = np.random.default_rng(1).normal(1, 1, 400)
    few, many = interval(draw[:100].tolist()), interval(draw.tolist())
    assert few[0] < draw[:100].mean() < few[1]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert interval([0.5]) == (0.5, 0.5)
