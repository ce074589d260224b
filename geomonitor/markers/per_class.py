r"""Markers of the spectrum within each class, averaged over the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from geomonitor.markers.inputs import feature_matrix, require_labels
from geomonitor.markers.spectrum import feature_spectrum, spectrum_markers

PER_CLASS = "_per_class"
"""Suffix of a marker that is computed class by class and averaged."""


def per_class_spectrum_markers(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Every marker of :mod:`.spectrum` on the points of one class, averaged over the classes.

    Args:
        features: ``(Q, N)``.
        labels: ``(Q,)`` integers.

    Returns:
        0-dim float64 each, by name with the suffix ``_per_class``. A class in which a marker is undefined (one point,
        all points equal) is left out of its mean; NaN where it is undefined in all.

    Raises:
        InputError: mismatched lengths, NaN or infinite features.

    Source: Chou et al. 2026 (``*_avg`` in its tables).

    >>> x = torch.cat([torch.eye(3), torch.ones(3, 3) - torch.eye(3)])
    >>> values = per_class_spectrum_markers(x, torch.tensor([0, 0, 0, 1, 1, 1]))
    >>> round(values["participation_ratio_per_class"].item(), 6)
    2.0
    """
    x = feature_matrix(features)
    require_labels(labels, len(x))
    labels = labels.to(x.device)
    of_classes = [spectrum_markers(feature_spectrum(x[labels == c])) for c in torch.unique(labels)]
    return {
        name + PER_CLASS: torch.stack([of_class[name] for of_class in of_classes]).nanmean()
        for name in (of_classes[0] if of_classes else ())
    }
