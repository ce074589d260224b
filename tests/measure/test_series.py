"""What one measurement of a series leaves to the next."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

import geomonitor as gm


def probe() -> gm.ProbeSet:
    draw = torch.Generator().manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(80, 6, generator=draw), torch.arange(80) % 4)
    return gm.ProbeSet.from_dataset(data, per_class=20)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def test_drift_is_measured_to_the_first_measurement():
    monitor, model = gm.GeometryMonitor(probe(), markers=["drift"], panel=None), network()
    kept = model[0].weight.detach().clone()
    for step, scale in enumerate((0.0, 1.0, 1.0, 0.0)):
        with torch.no_grad():
            model[0].weight.copy_(kept + scale * torch.randn(16, 6, generator=torch.Generator().manual_seed(1)))
        monitor.measure(model, step=step)
    drift = monitor.history.series("penultimate", "drift").values
    assert drift[0] == pytest.approx(0, abs=1e-9)
    assert drift[1] == pytest.approx(drift[2])
    assert drift[1] > 0.05
    assert drift[3] == pytest.approx(0, abs=1e-9)


def test_the_error_of_a_change_spans_a_measurement_whose_truth_failed():
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(5))
    new = torch.utils.data.TensorDataset(inputs, torch.arange(60) % 3)
    rows, fails = [], False

    def forward(model, inputs):
        rows.append(len(inputs))
        if fails and rows[-1] == 60:  # the points of new classes
            raise RuntimeError("no room")
        return model(inputs)

    truth = gm.TransferProbe.from_dataset(new, per_class=20)
    monitor = gm.GeometryMonitor(probe(), markers=["nc1"], panel=None, truth=truth, forward=forward, batch_size=100)
    model, records = network(), []
    for step in range(3):
        fails = step == 1
        with torch.no_grad():
            model[0].weight.add_(0.01)
        if fails:
            with pytest.warns(gm.GeomonitorWarning, match="no room"):
                records.append(monitor.measure(model, step=step))
        else:
            records.append(monitor.measure(model, step=step))
    changes = [next(r for r in of_step if r.marker == "transfer_accuracy").change_error for of_step in records]
    assert math.isnan(changes[1])
    assert math.isfinite(changes[2])


def test_after_a_failure_the_layer_is_found_anew():
    monitor, model, passes = gm.GeometryMonitor(probe(), markers=["nc1"], panel=None), network(), []
    model.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    broken = {"now": False}

    def maybe(module, inputs):
        if broken["now"]:
            raise RuntimeError("broken")

    model.register_forward_pre_hook(maybe)
    monitor.measure(model, step=0)
    passes.clear()
    monitor.measure(model, step=1)
    assert passes == [80]
    broken["now"] = True
    with pytest.warns(gm.GeomonitorWarning, match="broken"):
        monitor.measure(model, step=2)
    broken["now"] = False
    passes.clear()
    monitor.measure(model, step=3)
    assert passes == [8, 80]


def test_a_layer_that_a_run_of_the_model_does_not_show_is_logged(caplog):
    class Hidden(nn.Module):
        """Its logits are made where no operation of torch is seen."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x):
            logits = self.head(self.body(x))
            return torch.from_numpy(logits.detach().numpy().copy())

    with caplog.at_level(logging.WARNING, "geomonitor"):
        gm.GeometryMonitor(probe(), markers=["nc1"], panel=None).measure(Hidden(), step=0)
    assert [r.message for r in caplog.records] == [
        "'penultimate' is head:input by the order of registration, not by a run of the model: its forward pass does "
        "not show it"
    ]
