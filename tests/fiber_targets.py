"""What the tests of ``geomonitor fibers`` name as ``package.module:name``: images of squares, a network, a prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.explain import FlowPrior


def squares() -> tuple[Tensor, Tensor]:
    """Grey images 6 x 6, a bright 2 x 2 square anywhere, in one of two shades, which are the classes."""
    images = torch.zeros(50, 1, 6, 6)
    for place in range(50):
        row, column = divmod(place % 25, 5)
        images[place, :, row : row + 2, column : column + 2] = 0.5 if place < 25 else 1.0
    return images, torch.arange(50) // 25


class Exact(nn.Module):
    """The exact denoiser of a set of images: their mean, weighted by the likelihood of the noisy one."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a, s = 1 - t[0], t[0].clamp_min(0.02)
        apart = (x.flatten(1)[:, None] - a * self.images.flatten(1)[None]).square().sum(dim=2)
        return (torch.softmax(-apart / (2 * s**2), dim=1) @ self.images.flatten(1)).view_as(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(36, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)).relu())


def model() -> Net:
    torch.manual_seed(0)
    return Net()


def blind() -> Net:
    """Sees the sum of the upper half alone, and that of the lower one."""
    net = model()
    with torch.no_grad():
        net.body.weight.copy_(net.body.weight.view(12, 2, 18).mean(dim=2, keepdim=True).expand(12, 2, 18).flatten(1))
    return net


def other() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2))


def probe() -> gm.ProbeSet:
    return gm.ProbeSet.from_dataset(TensorDataset(*squares()), per_class=20)


def rows() -> gm.ProbeSet:
    return gm.ProbeSet.from_dataset(TensorDataset(torch.rand(40, 5), torch.arange(40) % 2), per_class=20)


def prior() -> FlowPrior:
    return FlowPrior(Exact(squares()[0]), (1, 6, 6), predicts="x0")


def small_prior() -> FlowPrior:
    return FlowPrior(lambda x, t: x, (1, 4, 4))


def flat_prior() -> FlowPrior:
    return FlowPrior(lambda x, t: x, (36,))


NUMBER = 3
