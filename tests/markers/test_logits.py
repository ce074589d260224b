"""Markers of the logits: hand-made logits, scikit-learn and SciPy as references, invariances, degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import Tensor

from geomonitor import InputError
from geomonitor.markers.logits import logit_statistics


def noisy_logits(points: int = 300, classes: int = 5, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(points) % classes
    z = torch.randn(points, classes, generator=stream, dtype=torch.float64)
    return scale * (z + 1.5 * torch.nn.functional.one_hot(labels, classes)), labels


def calibration_error_by_bins(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    error = 0.0
    for low in np.arange(bins) / bins:
        inside = (confidence > low) & (confidence <= low + 1 / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_against_scikit_learn_and_scipy():
    logits, labels = noisy_logits()
    z, y = logits.numpy(), labels.numpy()
    p, right = softmax(z, axis=1), z.argmax(1) == y
    confidence = p.max(1)
    rest = np.where(np.eye(5, dtype=bool)[y], -np.inf, z)
    expected = {
        "accuracy": accuracy_score(y, z.argmax(1)),
        "confidence": confidence.mean(),
        "entropy": entropy(p, axis=1).mean(),
        "energy": -logsumexp(z, axis=1).mean(),
        "margin": (z[np.arange(len(y)), y] - rest.max(1)).mean(),
        "auroc": roc_auc_score(right, confidence),
        "confident_accuracy": right[confidence >= 0.95].mean(),
        "calibration_error": calibration_error_by_bins(confidence, right),
    }
    # The calibration error of torchmetrics has its bins in float32.
    assert {k: v.item() for k, v in logit_statistics(logits, labels)._asdict().items()} == pytest.approx(
        expected, rel=1e-6
    )


def test_known_values():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    found = logit_statistics(logits, torch.tensor([0, 0]))
    assert found.accuracy.item() == 0.5
    assert found.confidence.item() == pytest.approx(0.75)
    assert found.entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3))
    assert found.energy.item() == pytest.approx(-math.log(4))
    assert found.margin.item() == pytest.approx(0, abs=1e-7)
    assert found.auroc.item() == 0.5  # both are equally sure
    assert math.isnan(found.confident_accuracy)  # nobody is sure
    assert found.calibration_error.item() == pytest.approx(0.25)


def test_uniform_logits_know_nothing():
    found = logit_statistics(torch.full((10, 4), 7.0), torch.arange(10) % 4)
    assert found.entropy.item() == pytest.approx(math.log(4), rel=1e-12)
    assert found.confidence.item() == pytest.approx(0.25)


@pytest.mark.parametrize("change", ["order", "classes", "offset"])
def test_invariances(change):
    logits, labels = noisy_logits()
    stream = torch.Generator().manual_seed(1)
    one = logit_statistics(logits, labels)
    if change == "order":
        order = torch.randperm(len(labels), generator=stream)
        logits, labels = logits[order], labels[order]
    elif change == "classes":
        order = torch.randperm(5, generator=stream)
        logits, labels = logits[:, order], torch.argsort(order)[labels]
    else:
        logits = logits + 1e3
    other = logit_statistics(logits, labels)
    assert other.energy.item() == pytest.approx(one.energy.item() - 1e3 * (change == "offset"), rel=1e-9)
    names = [name for name in one._fields if name != "energy"]
    assert [getattr(other, n).item() for n in names] == pytest.approx([getattr(one, n).item() for n in names], rel=1e-6)


def test_all_right_or_all_wrong_have_no_auroc():
    logits, _ = noisy_logits(20)
    for labels in (logits.argmax(1), logits.argmin(1)):
        assert math.isnan(logit_statistics(logits, labels).auroc)


def test_huge_logits_and_classes_that_cannot_be():
    logits = torch.tensor([[1e4, 0.0, -math.inf], [0.0, 1e4, -math.inf]])
    found = logit_statistics(logits, torch.tensor([0, 1]))
    assert (found.accuracy, found.confidence, found.entropy, found.margin) == (1, 1, 0, 1e4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_read_exactly(dtype):
    logits, labels = noisy_logits()
    rounded = logits.to(dtype)
    for one, other in zip(logit_statistics(rounded, labels), logit_statistics(rounded.double(), labels), strict=True):
        assert one.item() == other.item()


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1, 2])),
        (torch.zeros(3, 2), torch.tensor([0, 1, -1])),
        (torch.zeros(3, 1), torch.tensor([0, 0, 0])),
        (torch.zeros(3, 2, 2), torch.tensor([0, 0, 0])),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)),
    ],
)
def test_bad_input_is_named(logits, labels):
    with pytest.raises(InputError, match="got"):
        logit_statistics(logits, labels)
