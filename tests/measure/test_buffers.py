"""Batch norm on two ranks: running statistics differ between them, and the model of rank 0 is what is measured."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import geomonitor as gm
from tests.processes import in_processes

MARKERS = ("dimension", "participation_ratio", "nc1", "accuracy")


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    centers = torch.randn(3, 5, generator=generator)
    return TensorDataset((centers[labels] + torch.randn(120, 5, generator=generator)).double(), labels)


class Counted(nn.Module):
    """Has buffers that no two ranks need to share."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(places, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x


def model(places: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), Counted(places), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double()


def values(network: nn.Module) -> dict[str, float]:
    probe = gm.ProbeSet.from_dataset(data(), per_class=13)
    monitor = gm.GeometryMonitor(probe, markers=MARKERS, geometry={"directions": 20}, on_error="raise")
    monitor.measure(network, step=1)
    return {r.key: r.value for r in monitor.history if r.layer}


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def trained(rank: int) -> Any:
    """Under DDP, which gives rank 1 the running statistics of rank 0 at the start of a step only."""
    network = model()
    wrapped = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    x, y = data().tensors
    for step in range(8):
        own = slice(rank * 60 + 7 * step, rank * 60 + 7 * step + 7)
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x[own]), y[own]).backward()
        optimizer.step()
    before = copied(network)
    warnings.simplefilter("error", gm.GeomonitorWarning)
    versions = [buffer._version for buffer in network.buffers()]
    measured = values(network)
    assert [buffer._version for buffer in network.buffers()] == versions  # a backward pass may still need them
    assert values(wrapped) == measured
    # A buffer of another shape on one rank belongs to that rank.
    other = model(places=1 + rank)
    with torch.no_grad():
        other[1].running_var.fill_(1.0 + rank)
    return measured, before, copied(network), values(other)


def test_two_ranks_measure_the_model_of_rank_0_and_each_keeps_its_buffers():
    ranks = in_processes(trained)
    (first, weights, *_), (second, theirs, *_) = ranks
    assert not torch.equal(weights["1.running_mean"], theirs["1.running_mean"])  # else this would show nothing
    assert torch.equal(weights["0.weight"], theirs["0.weight"])
    assert first == second
    alone = model()
    alone.load_state_dict(weights)
    assert first == pytest.approx(values(alone), rel=1e-8)
    for _, before, after, _ in ranks:
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert ranks[0][3] == ranks[1][3]
    assert ranks[0][3] == pytest.approx(values(model()), rel=1e-8)
