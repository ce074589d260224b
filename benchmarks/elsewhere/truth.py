"""The truth about a network: accuracy of a linear probe on held-out classes, and the paired error of its fall."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.early_warning.truth import _ridge, _scale
from benchmarks.elsewhere.tasks import Network, Task

SPLITS = 3
PLATEAU = 3
"""Measurements over which the level of the plateau is the median."""


def measure_truth(task: Task) -> Callable[[Network], dict[str, float]]:
    """A function that measures a network again and again, and remembers what it has seen.

    Returns:
        a function of the network with ``unseen_accuracy``; ``plateau``, the highest level (median of three measurements
        in a row) before this measurement, NaN for the first three; ``fall_error``, the paired standard error, over
        points, of the difference between the mean of those three and this one.
    """
    seen: list[Tensor] = []

    @torch.no_grad()
    def measure(model: Network) -> dict[str, float]:
        inputs, labels = task.unseen.tensors
        model.eval()
        right = right_by_point(torch.nan_to_num(model.body(inputs).double()), labels)
        best, level = None, math.nan
        for first in range(len(seen) - PLATEAU + 1):
            of_window = float(torch.stack([one.mean() for one in seen[first : first + PLATEAU]]).median())
            if best is None or of_window > level:
                best, level = first, of_window
        error = math.nan
        if best is not None:
            difference = torch.stack(seen[best : best + PLATEAU]).mean(0) - right
            error = float(difference.std() / math.sqrt(len(right)))
        seen.append(right)
        return {"unseen_accuracy": float(right.mean()), "plateau": level, "fall_error": error}

    return measure


def right_by_point(features: Tensor, labels: Tensor) -> Tensor:
    """How often each point was right, over ``SPLITS`` splits in halves: ``(Q,)``, from 0 to 1.

    As :func:`benchmarks.early_warning.truth.linear_probe_accuracy`, whose value is the mean.
    """
    right = torch.zeros(len(labels), dtype=torch.float64)
    for seed in range(SPLITS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for fitted, tested in (halves, halves[::-1]):
            mean, scale = features[fitted].mean(0), _scale(features[fitted], "units")
            weights, bias = _ridge((features[fitted] - mean) / scale, labels[fitted])
            predicted = ((features[tested] - mean) / scale @ weights + bias).argmax(1)
            right[tested] += (predicted == labels[tested]).double() / SPLITS
    return right
