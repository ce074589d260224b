"""The truth about a network, each epoch: what its features are worth on new classes, and under shifts of the input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.early_warning.tasks import Network, Task

RIDGE, SPLITS = 1e-2, 3
SHOTS, DRAWS = 5, 40
Scaling = Literal["units", "common"]


CHECKED = ("unseen_accuracy", "val_loss", "val_accuracy")
"""What is measured several times an epoch."""


@torch.no_grad()
def measure_truth(model: Network, task: Task, *, whole: bool = True) -> dict[str, float]:
    """Probes on held-out and on known classes, accuracy under shifts, and what validation sees.

    Args:
        model: as it is in training; its mode is put back.
        task: its held-out classes and its validation.
        whole: otherwise only what is ``CHECKED``.
    """
    was_training = model.training
    model.eval()
    inputs, labels = task.validation
    logits = model(inputs)
    # Where a network has overflowed its features are worth chance, not an error.
    unseen = torch.nan_to_num(model.body(task.unseen.inputs).double()), task.unseen.labels
    truth = {"unseen_accuracy": linear_probe_accuracy(*unseen)}
    if whole:
        known = torch.nan_to_num(model.body(inputs).double()), labels
        truth |= {
            "unseen_common_scale_accuracy": linear_probe_accuracy(*unseen, scaling="common"),
            "unseen_few_shot_accuracy": few_shot_accuracy(*unseen),
            "known_probe_accuracy": linear_probe_accuracy(*known),
            "noise_accuracy": _accuracy(model(task.shifted["noise"]), labels),
            "blur_accuracy": _accuracy(model(task.shifted["blur"]), labels),
        }
    truth |= {
        "val_loss": float(nn.functional.cross_entropy(logits, labels)),
        "val_accuracy": _accuracy(logits, labels),
    }
    model.train(was_training)
    return truth


def linear_probe_accuracy(features: Tensor, labels: Tensor, scaling: Scaling = "units") -> float:
    """Accuracy of a linear classifier (ridge regression on one-hot labels), fitted on half of the points.

    The mean over both halves of ``SPLITS`` fixed splits, so that it moves when the features do and not by chance.

    Args:
        features: ``(Q, N)``, centred here.
        labels: ``(Q,)``, from 0.
        scaling: ``"units"``: every unit gets variance 1, so a direction that has shrunk counts in full; ``"common"``:
            one factor for all, so a direction that has shrunk against the others is lost in the penalty.
    """
    right = []
    for seed in range(SPLITS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for fitted, tested in (halves, halves[::-1]):
            mean, scale = features[fitted].mean(0), _scale(features[fitted], scaling)
            weights, bias = _ridge((features[fitted] - mean) / scale, labels[fitted])
            right.append(_accuracy((features[tested] - mean) / scale @ weights + bias, labels[tested]))
    return sum(right) / len(right)


def few_shot_accuracy(features: Tensor, labels: Tensor) -> float:
    """Accuracy of the nearest class mean of five points a class, over ``DRAWS`` fixed draws of these points.

    Args:
        features: ``(Q, N)``.
        labels: ``(Q,)``, from 0; each class has more than five points.
    """
    right = []
    for seed in range(DRAWS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        of_class = [order[labels[order] == label] for label in range(int(labels.max()) + 1)]
        means = torch.stack([features[own[:SHOTS]].mean(0) for own in of_class])
        tested = torch.cat([own[SHOTS:] for own in of_class])
        right.append(_accuracy(-torch.cdist(features[tested], means), labels[tested]))
    return sum(right) / len(right)


def _ridge(centred: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``(N, P)`` and biases ``(P,)``."""
    targets = nn.functional.one_hot(labels).double()
    gram = centred.T @ centred + RIDGE * len(labels) * torch.eye(centred.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, centred.T @ (targets - targets.mean(0))), targets.mean(0)


def _scale(features: Tensor, scaling: Scaling) -> Tensor:
    """Standard deviation of each unit, or of all together; 1 where nothing moves."""
    variance = features.var(0)
    deviation = variance.sqrt() if scaling == "units" else variance.mean().sqrt()
    return torch.where(deviation > 1e-9, deviation, torch.ones_like(deviation))


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())
