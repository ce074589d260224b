"""The layer that "penultimate" is where no output has columns for the classes of the probe set."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


class Around(nn.Module):
    """A body, if there is one, and a block."""

    def __init__(self, body: nn.Module | None, block: nn.Module) -> None:
        super().__init__()
        self.body, self.block = nn.Identity() if body is None else body, block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.body(x))


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))


def resolved(model: nn.Module) -> str:
    monitor = gm.GeometryMonitor(gm.ProbeSet.from_unlabelled(TensorDataset(X), samples=20))
    monitor.measure(model, step=0)
    return monitor.protocol["resolved"]["penultimate"]


def test_a_block_behind_other_layers_is_a_projector_and_the_whole_network_is_none() -> None:
    assert resolved(Around(layers(), layers())) == "block:input"
    assert resolved(Around(None, layers())) == "block.2:input"  # "block:input" would be the data
    assert resolved(layers()) == "2:input"
