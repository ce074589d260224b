"""What the tests of ``geomonitor scan`` name as ``package.module:name``: a small Lightning model and its probe set."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from tests.options import grouped

MARKERS = ["capacity", "dimension", "radius", "utility", "nc1", "drift", "rankme", "accuracy"]


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_loss", self.training_step(batch, 0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    centers = torch.randn(3, 5, generator=generator)
    return TensorDataset(centers[labels] + torch.randn(96, 5, generator=generator), labels)


def model() -> Net:
    return Net()


def probe() -> gm.ProbeSet:
    return gm.ProbeSet.from_dataset(dataset(), per_class=13)


def monitor() -> gm.GeometryMonitor:
    return gm.GeometryMonitor(probe(), markers=MARKERS, **grouped(directions=30, detector=low_from_the_third))


def low_from_the_third(series: gm.Series) -> gm.Verdict:
    low = len(series.steps) > 2
    since = int(series.steps[2]) if low else None
    return gm.Verdict(low, series.layer, series.marker, 1.0, 2.0, 0.1, since_step=since, checks=int(low))


def broken() -> None:
    raise ZeroDivisionError("division by zero")


NUMBER = 3


def finished(scale: float) -> Net:
    torch.manual_seed(3)
    net = Net()
    with torch.no_grad():
        net.body.weight[:, 1:] *= scale  # fewer directions of the input reach the layer
    return net.eval()


def rich() -> Net:
    return finished(1.0)


def poor() -> Net:
    return finished(0.05)


def rich_again() -> Net:
    return finished(1.0)


def other() -> Other:
    torch.manual_seed(1)
    return Other()


def new_classes() -> gm.TransferProbe:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(120) % 4
    centers = 2 * torch.randn(4, 5, generator=generator)
    centers[:, 0] = 0  # they differ only where ``poor`` sees little
    inputs = centers[labels] + torch.randn(120, 5, generator=generator)
    return gm.TransferProbe.from_dataset(TensorDataset(inputs, labels), per_class=25)


def new_class_points() -> gm.ProbeSet:
    return new_classes().probe
