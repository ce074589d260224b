"""What a measurement costs is known before the run, and logged once in it."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.measure import estimate


def monitor(**options) -> gm.GeometryMonitor:
    data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    return gm.GeometryMonitor(gm.ProbeSet.from_dataset(data, per_class=20), geometry={"directions": 10}, **options)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def test_an_estimate_leaves_monitor_and_model_as_they_were() -> None:
    watcher, model = monitor(), network().train()
    before = copy.deepcopy(model.state_dict())
    cost = watcher.estimate(model)
    assert (len(watcher.history), watcher.references, watcher.protocol.get("resolved")) == (0, {}, None)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert cost.points_bytes == 80 * 16 * 8
    assert cost.seconds > cost.forward_seconds > 0
    assert f"{cost.seconds:.2g} s" in repr(cost)


def test_the_forward_pass_alone_is_timed_over_all_points_and_not_counted_twice(monkeypatch) -> None:
    clock, runs = iter((0.0, 20.0, 30.0, 31.0)), []
    monkeypatch.setattr(estimate, "perf_counter", lambda: next(clock))

    def forward(model, inputs):
        runs.append((len(inputs), inputs.dtype, model.training))
        return model(inputs)

    cost = monitor(forward=forward, batch_size=30).estimate(network().double().train())
    assert (cost.forward_seconds, cost.seconds, cost.share) == (1, 20, 20)
    assert sum(points for points, _, _ in runs[-3:]) == 80
    assert {(dtype, training) for _, dtype, training in runs} == {(torch.float64, False)}


def test_several_layers_hold_more() -> None:
    assert monitor(layers=["0", "penultimate"]).estimate(network()).points_bytes == 80 * (16 + 16) * 8


def test_what_cannot_be_measured_is_raised() -> None:
    with pytest.raises(gm.InputError, match="no layer 'nowhere'"):
        monitor(layers="nowhere").estimate(network())
    with pytest.raises(gm.InputError, match="takes points from the validation"):
        gm.GeometryMonitor(gm.ValidationProbe(classes=4)).estimate(network())


@pytest.mark.parametrize(
    ("limit", "words"), [(None, "max_overhead=0.05 would limit"), (1e6, "max_overhead=1e+06 limits")]
)
def test_the_first_cost_of_a_run_is_one_line(caplog, limit: float | None, words: str) -> None:
    run, model = gm.MonitoredRun(monitor(max_overhead=limit)), network()
    with caplog.at_level(logging.INFO, "geomonitor"):
        run.start(model)
        for step in range(1, 4):
            run.measure(model, step=step)
    lines = [record.message for record in caplog.records if "first measurement took" in record.message]
    assert len(lines) == 1
    assert words in lines[0]
    assert "% of the training time since the start" in lines[0]
