"""Feature matrices with a known or typical geometry, for the tests of the effective geometry."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def gaussian_clouds(classes: int, points: int, dimension: int, noise: float, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal centres with isotropic noise."""
    stream = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 1, dimension, generator=stream, dtype=torch.float64)
    noises = torch.randn(classes, points, dimension, generator=stream, dtype=torch.float64)
    features = (centers + noise * noises).reshape(-1, dimension)
    return features, torch.arange(classes).repeat_interleave(points)


def relu_network(classes: int, points: int, dimension: int, steps: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of the last hidden layer of a small network, untrained (0 steps) or trained on noisy
    prototypes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prototypes = torch.randn(classes, 32)

        def batch(count: int) -> tuple[Tensor, Tensor]:
            labels = torch.arange(classes).repeat_interleave(count)
            return torch.tanh(prototypes[labels] + torch.randn(len(labels), 32)), labels

        body = nn.Sequential(nn.Linear(32, dimension), nn.ReLU(), nn.Linear(dimension, dimension), nn.ReLU())
        head = nn.Linear(dimension, classes)
        optimiser = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.05, momentum=0.9)
        for _ in range(steps):
            inputs, labels = batch(16)
            loss = nn.functional.cross_entropy(head(body(inputs)), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        inputs, labels = batch(points)
        with torch.no_grad():
            return body(inputs), labels


def spheres(
    classes: int,
    points: int,
    dimension: int,
    *,
    axes: int,
    radius: float = 1.0,
    center_correlation: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Spherical manifolds: ``u0 + R unit(sum_j g_j u_j)`` with ``u ~ N(0, I/N)`` and correlated centres."""
    stream = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    shared, own = normal(1, 1, dimension), normal(classes, 1, dimension)
    centers = center_correlation**0.5 * shared + (1 - center_correlation) ** 0.5 * own
    offsets = normal(classes, points, axes) @ normal(classes, axes, dimension)
    offsets = offsets / offsets.norm(dim=2, keepdim=True)
    features = (centers / dimension**0.5 + radius * offsets).reshape(-1, dimension)
    return features, torch.arange(classes).repeat_interleave(points)
