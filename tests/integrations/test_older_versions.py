"""What version 0.1.0.dev0 left is still read: a history with its side file, and the state in a checkpoint.

Both were written by that version in nine epochs of the network and data below, by
``GeometryCallback(probe, directions=10, markers=["dimension", "nc1", "accuracy", "drift"])``.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.history.runs import load_run
from geomonitor_integrations.lightning import GeometryCallback

OLD = Path(__file__).parents[1] / "data/version_0_1_0_dev0"
STEPS = [6 * (epoch + 1) for epoch in range(9)]


def callback() -> GeometryCallback:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    points = torch.randn(3, 5, generator=generator)[labels] + torch.randn(96, 5, generator=generator)
    probe = gm.ProbeSet.from_dataset(TensorDataset(points, labels), per_class=12)
    return GeometryCallback(
        probe, geometry={"directions": 10, "ridge": 0.0}, markers=["dimension", "nc1", "accuracy", "drift"]
    )


def test_a_run_is_read_with_its_protocol():
    run = load_run(OLD)
    assert run.history.series("penultimate", "dimension").steps.tolist() == STEPS
    assert run.protocol["directions"] == 10
    assert run.panel is None  # not recorded then


def test_a_checkpoint_goes_on():
    state = torch.load(OLD / "callback.pt", weights_only=True)
    geometry = callback()
    geometry.load_state_dict(state)
    history, old = geometry.monitor.history, load_run(OLD).history
    assert {record.key for record in history} == {record.key for record in old}
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    geometry.run.start(model, None, step=STEPS[-1])
    logged = geometry.run.measure(model, step=60, epoch=9)
    assert history.series("penultimate", "dimension").steps.tolist() == [*STEPS, 60]
    assert math.isfinite(logged["geometry/penultimate/drift"])  # to the reference that the checkpoint holds
    assert logged["geometry/penultimate/judged"] == 1  # nine measurements before it: the warm-up is over
