"""Feature matrices of the benchmark: what a layer looks like before, during and after training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

Features = tuple[Tensor, Tensor]


class Case(NamedTuple):
    """A row of the table of issue 3."""

    name: str
    title: str
    make: Callable[[], Features]
    at_least: float
    """times faster than the loop"""
    pairs: int | None = None
    """number of class pairs; None: joint"""


def trained(classes: int, points: int, dimension: int, *, steps: int = 300, inputs: int = 64) -> Features:
    """ReLU features of a small network after some training on noisy prototypes; 0 steps: untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prototypes = torch.randn(classes, inputs)

        def batch(labels: Tensor) -> Tensor:
            return torch.tanh(prototypes[labels] + torch.randn(len(labels), inputs))

        body = nn.Sequential(nn.Linear(inputs, dimension), nn.ReLU(), nn.Linear(dimension, dimension), nn.ReLU())
        head = nn.Linear(dimension, classes)
        optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
        for _ in range(steps):
            labels = torch.randint(classes, (256,))
            loss = nn.functional.cross_entropy(head(body(batch(labels))), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        labels = torch.arange(classes).repeat_interleave(points)
        with torch.no_grad():
            return body(batch(labels)), labels


def collapsed(classes: int, points: int, dimension: int, noise: float = 1e-3) -> Features:
    """Class means in general position with a little noise."""
    stream = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, 1, dimension, generator=stream)
    noises = torch.randn(classes, points, dimension, generator=stream)
    return (centers + noise * noises).flatten(0, 1), torch.arange(classes).repeat_interleave(points)


CASES = (
    Case("A", "P=10, M=50, N=512, trained", lambda: trained(10, 50, 512), 20),
    Case("A-collapsed", "A, nearly collapsed", lambda: collapsed(10, 50, 512), 25),
    Case("A-untrained", "A, untrained", lambda: trained(10, 50, 512, steps=0), 8),
    Case("B", "P=2, M=50, N=2048", lambda: trained(2, 50, 2048), 30),
    Case("C", "P=10, M=500, N=512", lambda: trained(10, 500, 512), 18),
    Case("D", "P=100, M=50, N=512, trained", lambda: trained(100, 50, 512, steps=1500, inputs=256), 25),
    Case("E", "200 class pairs, M=50, N=2048", lambda: trained(21, 50, 2048), 30, pairs=200),
    Case("F", "P=100, M=50, N=512, untrained (saturated)", lambda: trained(100, 50, 512, steps=0, inputs=256), 1),
)
