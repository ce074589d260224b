"""The control of one reverse step: a small shift of the state, which brings the clean estimate to the target features.

Non-linear diffusion trajectory matching (Pandey et al., arXiv:2502.03686) with its terminal cost alone, as Rousselot,
Wendebourg and Köthe (arXiv:2603.21782) use it to sample fibers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from geomonitor.errors import MeasurementError

Optimiser = Literal["normalised", "adam", "gradient"]
LARGEST_GRADIENT = 1.0
"""Longer gradients are cut to this length before Adam sees them, as the authors do."""
BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
"""Adam's own constants (Kingma and Ba 2015)."""


def distance(clean: Tensor, features: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Euclidean distance ``(B,)`` of the features of clean estimates to the target's."""
    apart: Tensor = torch.linalg.vector_norm(features(clean) - target, dim=1)
    return apart


def gradient(cost: Tensor, to: Tensor) -> Tensor:
    """Gradient of the summed cost, one direction for each of the batch; zero for a member whose own is not finite.

    Raises:
        MeasurementError: the cost does not depend on it in a differentiable way.
    """
    found = torch.autograd.grad(cost.sum(), to, allow_unused=True)[0] if cost.requires_grad else None
    if found is None:
        raise MeasurementError(
            "no gradient comes from the features back to the inputs: the layer's activations are quantised or "
            "detached, or to_model is not differentiable; take an earlier layer"
        )
    finite = torch.isfinite(found.flatten(1)).all(dim=1).view(-1, *[1] * (found.ndim - 1))
    return torch.where(finite, found, 0.0)


def normalised(g: Tensor) -> Tensor:
    """Each gradient with a root mean square of one over its coordinates: ``sqrt(dim) g / |g|``; zero stays zero.

    >>> normalised(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.8485, 1.1314],
            [0.0000, 0.0000]])
    """
    flat = g.flatten(1)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    unit: Tensor = torch.where(length > 0, flat / length.where(length > 0, torch.ones_like(length)), 0)
    return unit.view_as(g) * math.sqrt(flat.shape[1])


class Control:
    """Takes steps against a gradient, each of the root mean square ``rate`` a coordinate.

    Adam divides each coordinate by its own gradient and so leaves the row space of the layer's derivative: its
    fibers are biased. The normalised gradient keeps the direction.

    Args:
        like: the state that is controlled.
        optimiser: ``"normalised"`` or ``"adam"``.
    """

    def __init__(self, like: Tensor, optimiser: str) -> None:
        self.value = torch.zeros_like(like)
        self._adam = optimiser == "adam"
        self._first, self._second, self._steps = torch.zeros_like(like), torch.zeros_like(like), 0

    def step(self, g: Tensor, rate: float) -> None:
        """One step."""
        self.value = self.value - rate * (self._adams(g) if self._adam else normalised(g))

    def _adams(self, g: Tensor) -> Tensor:
        self._steps += 1
        length = torch.linalg.vector_norm(g.flatten(1), dim=1).view(-1, *[1] * (g.ndim - 1))
        g = g * (LARGEST_GRADIENT / length.clamp_min(LARGEST_GRADIENT))
        self._first = BETAS[0] * self._first + (1 - BETAS[0]) * g
        self._second = BETAS[1] * self._second + (1 - BETAS[1]) * g**2
        first = self._first / (1 - BETAS[0] ** self._steps)
        second = self._second / (1 - BETAS[1] ** self._steps)
        return first / (second.sqrt() + ADAM_EPSILON)
