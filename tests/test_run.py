"""A monitored run without any framework: when it measures, what it logs, when it stops, that nothing ends it."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.history.runs import load_run
from tests.test_monitor import low_from, network, probe_set


def monitored(*, detector: Any = "auto", on_error: str = "raise", **options: Any) -> gm.MonitoredRun:
    panel = gm.Panel(("dimension",), detector) if detector != "auto" else gm.Panel()
    monitor = gm.GeometryMonitor(
        probe_set(), geometry={"directions": 20}, markers=["dimension", "nc1"], panel=panel, on_error=on_error
    )
    return gm.MonitoredRun(monitor, **options)


def steps(run: gm.MonitoredRun) -> list[int]:
    return run.monitor.history.series("penultimate", "dimension").steps.tolist()


def train(run: gm.MonitoredRun, model: nn.Module, epochs: range, *, batches: int = 5) -> None:
    """The loop of a user: no framework, no training."""
    for epoch in epochs:
        for batch in range(batches):
            step = epoch * batches + batch + 1
            if run.due_after_batch(step):
                run.measure(model, step=step, epoch=epoch)
        if run.due_after_epoch(epoch, last=epoch == epochs[-1]):
            run.measure(model, step=(epoch + 1) * batches, epoch=epoch)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [5, 10, 15, 20]), ({"every_n_epochs": 2}, [5, 15]), ({"every_n_steps": 7}, [7, 14]),
     ({"every_n_steps": np.int64(10)}, [10, 20])],
)  # fmt: skip
def test_cadence(options, expected, tmp_path):
    run, model = monitored(**options), network()
    run.start(model, tmp_path)
    train(run, model, range(4))
    run.finish()
    assert steps(run) == expected
    assert load_run(tmp_path).history.series("penultimate", "dimension").steps.tolist() == expected


def test_an_epoch_is_measured_once_however_often_it_is_asked_and_wherever_the_step_stands():
    run, model = monitored(), network()
    run.start(model)
    assert run.due_after_epoch(0)
    run.measure(model, step=0, epoch=0)
    assert not run.due_after_epoch(0)
    assert run.due_after_epoch(1)  # the step may stand still


def test_a_batch_of_several_steps_passes_its_multiple_in_the_middle():
    run = monitored(every_n_steps=5)
    run.start(network())
    assert [step for step in range(2, 21, 2) if run.due_after_batch(step)] == [6, 10, 16, 20]


def test_a_second_start_is_a_new_series_and_one_that_goes_on_is_not(tmp_path):
    run, model = monitored(), network()
    run.start(model, tmp_path / "a")
    train(run, model, range(2))
    run.start(model, tmp_path / "a", step=10)  # the same run goes on
    train(run, model, range(2, 3))
    assert steps(run) == [5, 10, 15]
    run.start(model, tmp_path / "b")  # another one
    train(run, model, range(1))
    assert steps(run) == [5]
    assert load_run(tmp_path / "a").history.series("penultimate", "dimension").steps.tolist() == [5, 10, 15]
    assert load_run(tmp_path / "b").history.series("penultimate", "dimension").steps.tolist() == [5]


def test_cut_and_resumed_equals_unbroken(tmp_path):
    model = network()
    whole, first, second = (monitored(detector=low_from(12), every_n_epochs=1) for _ in range(3))
    with pytest.warns(gm.GeometryDeclineWarning):
        whole.start(model, tmp_path / "whole")
        train(whole, model, range(4))
    first.start(model, tmp_path / "cut")
    train(first, model, range(2))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.start(model, tmp_path / "cut", step=10)
    assert not second.due_after_epoch(1)  # measured before the cut
    with pytest.warns(gm.GeometryDeclineWarning):
        train(second, model, range(2, 4))

    def records(run: gm.MonitoredRun) -> list[str]:
        return [repr(record._replace(time=0.0)) for record in run.monitor.history if record.layer]

    assert records(second) == records(whole)
    assert second.should_stop == whole.should_stop
    assert second.should_stop == f"geometry early stopping: {whole.monitor.status.headline}"
    assert " has lost 50 % of its dimension since " in second.should_stop
    assert whole.stop_reason("another layer") is None


def test_the_reason_to_stop_begins_with_what_was_lost_as_the_status_does():
    run = monitored()
    values = [2.0] * 10 + [1.2] * 4
    run.monitor.history.append(
        gm.Record(10 * n, n, "penultimate", "dimension", value) for n, value in enumerate(values)
    )
    run.monitor.verdicts["penultimate"] = gm.Verdict(
        True, "penultimate", "numerical_rank", 120.0, 200.0, 2.0, since_step=100, since_epoch=10, checks=3,
        agreeing=("dimension",), calibrated=True, noticed=True,
    )  # fmt: skip
    begin = "The representation has lost 40 % of its dimension since epoch 10 (step 100)."
    assert run.monitor.status.headline.startswith(begin)
    assert (
        run.should_stop == run.stop_reason("penultimate") == f"geometry early stopping: {run.monitor.status.headline}"
    )


def test_the_side_file_holds_protocol_and_panel(tmp_path):
    run, model = monitored(), network()
    run.start(model, tmp_path)
    train(run, model, range(1))
    loaded = load_run(tmp_path)
    assert loaded.protocol == run.monitor.protocol
    assert loaded.panel == run.monitor.panel.to_dict()


def test_on_alarm_is_called_once_and_one_that_fails_ends_nothing():
    calls: list[str] = []

    def failing(verdict: gm.Verdict, text: str) -> None:
        raise ConnectionError("no network")

    run = monitored(detector=low_from(2), on_alarm=[failing, lambda verdict, text: calls.append(text)])
    run.start(network())
    with pytest.warns(gm.GeometryDeclineWarning), pytest.warns(gm.GeomonitorWarning, match="on_alarm failed"):
        for step in (1, 2, 3):
            logged = run.measure(network(), step=step)
    assert len(calls) == 1
    assert "dimension of 'penultimate' fell by 50 %" in calls[0]
    assert logged["geometry/penultimate/alarm"] == 1


class Odd(torch.optim.SGD):
    """Keeps a pair as weight decay, as optimisers with decoupled decay do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["weight_decay"] = (0.0, 0.1)


class Strange:
    """Has no parameter groups at all."""


@pytest.mark.parametrize("optimizers", [[], "odd", [Strange()]])
def test_what_an_optimiser_looks_like_ends_nothing(optimizers):
    model = network()
    run = monitored(on_error="warn")
    run.start(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeomonitorWarning)
        logged = run.measure(model, step=1, optimizers=[Odd(model.parameters())] if optimizers == "odd" else optimizers)
    assert math.isfinite(logged["geometry/penultimate/dimension"])
    assert not len(run.monitor.history.series("", "weight_decay").steps)


def test_a_layer_that_vanishes_is_nan_and_the_alarm_is_not_known_then():
    parts = {"body": nn.Linear(6, 8), "middle": nn.ReLU(), "head": nn.Linear(8, 7)}
    model = nn.Sequential(OrderedDict(parts))
    monitor = gm.GeometryMonitor(probe_set(), geometry={"directions": 20}, layers={"hidden": "middle:output"})
    run = gm.MonitoredRun(monitor)
    run.start(model)
    assert run.measure(model, step=1)["geometry/hidden/judged"] == 0  # too early
    del model.middle
    with pytest.warns(gm.GeomonitorWarning, match="could not be measured at step 2"):
        logged = run.measure(model, step=2)
    assert math.isnan(logged["geometry/hidden/dimension"])
    assert math.isnan(logged["geometry/hidden/alarm"])
    assert logged["geometry/hidden/judged"] == 0
    assert run.should_stop is None


def test_a_failure_that_lasts_is_warned_of_again():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of cheese")

    run = monitored(on_error="warn")
    run.start(Broken())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 13):
            run.measure(Broken(), step=step)
    said = [str(w.message) for w in caught if "out of cheese" in str(w.message)]
    assert len(said) == 2
    assert "10th time" in said[1]


def test_a_run_without_a_measurement_says_so_at_its_end(tmp_path):
    run = monitored(every_n_steps=1000)
    run.start(network(), tmp_path)
    train(run, network(), range(2))
    with pytest.warns(gm.GeomonitorWarning, match="not measured once in this run: every_n_steps=1000"):
        run.finish()


def test_the_budget_makes_up_for_the_last_one():
    run = monitored()
    run.start(network())
    run.monitor.budget.every, run.monitor.budget._costs, run.monitor.budget._waited = 3, [1.0], 0
    with pytest.warns(gm.GeomonitorWarning, match=r"max_overhead=0\.05"):
        assert not run.due_after_epoch(0)
    assert not run.due_after_epoch(0)  # the same question again is not counted again
    assert run.makes_up
    assert run.due_after_epoch(1, last=True)


@pytest.mark.parametrize(
    "option",
    [
        {"every_n_epochs": 0}, {"every_n_epochs": 1.5}, {"every_n_epochs": math.nan}, {"every_n_epochs": True},
        {"every_n_epochs": "2"}, {"every_n_steps": 0}, {"every_n_steps": math.inf}, {"name": "a/b"}, {"name": None},
        {"name": "a" * 300}, {"allow_protocol_change": "no"}, {"on_alarm": 3}, {"on_alarm": lambda verdict: None},
    ],
)  # fmt: skip
def test_wrong_options_are_named(option):
    with pytest.raises(gm.InputError, match=next(iter(option))):
        monitored(**option)


def test_a_layer_that_does_not_exist_is_refused_at_the_start():
    monitor = gm.GeometryMonitor(probe_set(), layers="fc")
    with pytest.raises(gm.InputError, match="fc"):
        gm.MonitoredRun(monitor).start(network())
