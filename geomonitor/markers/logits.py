r"""Markers of the logits on the probe set: accuracy, confidence, and the relation of the two."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.markers.inputs import on_float64_device, require_labels, require_matrix

CONFIDENT = 0.95
"""Confidence from which a point counts as confident (Chou et al. 2026)."""

CALIBRATION_BINS = 15
"""Bins of equal width of the expected calibration error (Guo et al. 2017)."""


class LogitMarkers(NamedTuple):
    """Markers of the logits, each a 0-dim float64 tensor."""

    accuracy: Tensor
    """share of points whose largest logit belongs to their class"""
    confidence: Tensor
    """mean largest softmax probability"""
    entropy: Tensor
    """mean entropy of the softmax, in nats"""
    energy: Tensor
    """mean of ``-logsumexp`` of the logits"""
    margin: Tensor
    """mean of the logit of the class less the largest other one"""
    auroc: Tensor
    """area under the ROC curve of the confidence as a test for a right answer; NaN if all or none are right"""
    confident_accuracy: Tensor
    """accuracy on points with a confidence of at least 0.95; NaN if there are none; the paper's ATC score"""
    calibration_error: Tensor
    """expected calibration error, 15 bins"""


def logit_statistics(logits: Tensor, labels: Tensor) -> LogitMarkers:
    r"""Markers of logits against labels.

    Args:
        logits: ``(Q, C)``, any real dtype; ``-inf`` is a class that cannot be.
        labels: ``(Q,)`` integers in ``0 .. C - 1``.

    Returns:
        ``LogitMarkers``; all but ``energy`` and ``margin`` (any) and ``entropy`` (up to log C) in ``[0, 1]``.

    Raises:
        InputError: wrong shape, fewer than two classes, labels out of range.

    Source: energy as in Liu et al. 2020; AUROC and calibration error from torchmetrics. The paper's "ATC score" is
    ``confident_accuracy``, not the quantity of Garg et al. 2022.

    >>> s = logit_statistics(torch.tensor([[4.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1]))
    >>> round(s.accuracy.item(), 3), s.confident_accuracy.item(), round(s.margin.item(), 3), s.auroc.item()
    (0.667, 0.5, 0.667, 0.5)
    """
    require_matrix(logits)
    require_labels(labels, len(logits))
    if not len(labels) or logits.shape[1] < 2 or not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
        raise InputError(
            f"expected points with logits (Q, C) of at least 2 classes and labels in 0 .. C - 1; got logits "
            f"{tuple(logits.shape)} and {'no labels' if not len(labels) else f'labels up to {int(labels.max())}'}"
        )
    return statistics_of(point_statistics(logits, labels))


def point_statistics(logits: Tensor, labels: Tensor) -> Tensor:
    """What the markers need of each point; shapes do not depend on values, so nothing waits for the device.

    Args:
        logits: ``(B, C)``.
        labels: ``(B,)`` in ``0 .. C - 1``.

    Returns:
        ``(B, 5)`` float64: right or not, confidence, entropy, energy, margin.
    """
    z = on_float64_device(logits.detach()).to(torch.float64)
    labels = labels.to(z.device)[:, None]
    probabilities = z.softmax(dim=1)
    own = z.gather(1, labels)[:, 0]
    others = z.scatter(1, labels, -torch.inf).amax(dim=1)
    columns = (
        (z.argmax(dim=1) == labels[:, 0]).to(torch.float64),
        probabilities.amax(dim=1),
        torch.special.entr(probabilities).sum(dim=1),
        -z.logsumexp(dim=1),
        own - others,
    )
    return torch.stack(columns, dim=1)


def statistics_of(points: Tensor) -> LogitMarkers:
    """The markers from :func:`point_statistics` of all points."""
    return LogitMarkers(*(LOGIT_FORMULAS[name](points.T) for name in LogitMarkers._fields))


def _auroc(columns: Tensor) -> Tensor:
    right, confidence = columns[0], columns[1]
    if bool((right == right[0]).all()):  # all or none
        return right.new_tensor(torch.nan)
    from torchmetrics.functional.classification import binary_auroc  # slow to import: a second

    return binary_auroc(_probability(confidence), right.long()).to(torch.float64)


def _confident_accuracy(columns: Tensor) -> Tensor:
    right, confidence = columns[0], columns[1]
    return right[confidence >= CONFIDENT].mean()  # of nothing it is NaN


def _calibration_error(columns: Tensor) -> Tensor:
    right, confidence = columns[0], columns[1]
    from torchmetrics.functional.classification import binary_calibration_error  # slow to import

    error = binary_calibration_error(_probability(confidence), right.long(), n_bins=CALIBRATION_BINS)
    return error.to(torch.float64)


def _probability(confidence: Tensor) -> Tensor:
    return confidence.clamp(0, 1)  # whatever the rounding of the softmax


LOGIT_FORMULAS: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "accuracy": lambda columns: columns[0].mean(),
        "confidence": lambda columns: columns[1].mean(),
        "entropy": lambda columns: columns[2].mean(),
        "energy": lambda columns: columns[3].mean(),
        "margin": lambda columns: columns[4].mean(),
        "auroc": _auroc,
        "confident_accuracy": _confident_accuracy,
        "calibration_error": _calibration_error,
    }
)
"""The formula of each marker of this file, by name: a function of the columns of :func:`point_statistics`."""
