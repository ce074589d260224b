"""The points of one layer, and what several markers share of them: each is computed on first use, and once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from geomonitor.markers.distances import pair_distances
from geomonitor.markers.inputs import feature_matrix, require_labels
from geomonitor.markers.moments import Moments, moments_of
from geomonitor.markers.singular_values import Spectrum


class LayerPoints:
    """Checked features and labels of one layer.

    Args:
        features: ``(Q, N)``, any real dtype.
        labels: ``(Q,)`` integers.
        weight: ``(P, N)`` weights of a linear head on these features, one row for each class in ascending order.
        bias: ``(P,)`` of that head.
        reference: ``(Q, K)`` features of the same points in the same order at another time.

    Raises:
        InputError: wrong shape or type, NaN or infinite features.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> None:
        self.features = feature_matrix(features)
        """``(Q, N)`` float64"""
        require_labels(labels, len(self.features))
        names, self.class_of = torch.unique(labels.to(self.features.device), return_inverse=True)
        self.classes = len(names)
        self.weight, self.bias, self.reference = weight, bias, reference

    @property
    def undefined(self) -> Tensor:
        """NaN, for what needs a head or a reference that there is not."""
        return self.features.new_tensor(torch.nan)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of all points."""
        return Spectrum.of(self.features)

    @cached_property
    def class_spectra(self) -> list[Spectrum]:
        """Of the points of each class."""
        return [Spectrum.of(self.features[self.class_of == c]) for c in range(self.classes)]

    @cached_property
    def moments(self) -> Moments:
        """Class means and the scatter around them."""
        return moments_of(self.features, self.class_of, self.classes)

    @cached_property
    def pairs(self) -> Tensor:
        """``(Q (Q - 1) / 2,)`` distances of all pairs of points."""
        return pair_distances(self.features)
