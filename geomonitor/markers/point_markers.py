"""All markers of a set of points at once; the pairwise distances are worked out once for those that need them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from geomonitor.markers.activity import Activity, activity
from geomonitor.markers.collapse import classifier_disagreement
from geomonitor.markers.distances import Distances, distances_from, pair_distances
from geomonitor.markers.drift import drift
from geomonitor.markers.inputs import feature_matrix
from geomonitor.markers.neighbors import intrinsic_dimension_from
from geomonitor.markers.per_class import PER_CLASS, per_class_spectrum_markers
from geomonitor.markers.table import MARKERS


def point_markers(
    features: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    reference: Tensor | None = None,
    markers: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The markers whose state is ``"points"``, by name.

    Args:
        features: ``(Q, N)``.
        labels: ``(Q,)`` integers.
        weight: of a linear head, see :func:`.collapse.classifier_disagreement`; without weights ``nc4`` is NaN.
        bias: of that head.
        reference: ``(Q, K)``, see :func:`.drift.drift`; without it ``drift`` is NaN.
        markers: names to compute, by default all; others that come for nothing may be among the result.

    Returns:
        0-dim float64 each.

    Raises:
        InputError: mismatched shapes, NaN or infinite features.
    """
    wanted = {name for name, row in MARKERS.items() if row.state == "points"}
    if markers is not None:
        wanted &= set(markers)
    x = feature_matrix(features)
    labels = labels.to(x.device)
    undefined = x.new_tensor(torch.nan)
    values: dict[str, Tensor] = {}
    if wanted & set(Activity._fields):
        values |= activity(x)._asdict()
    if any(name.endswith(PER_CLASS) for name in wanted):
        values |= per_class_spectrum_markers(x, labels)
    if wanted & {*Distances._fields, "intrinsic_dimension"}:
        pairs = pair_distances(x)
        values |= distances_from(x, pairs, labels)._asdict()
        values["intrinsic_dimension"] = intrinsic_dimension_from(len(x), pairs)
    if "nc4" in wanted:
        values["nc4"] = undefined if weight is None else classifier_disagreement(x, labels, weight, bias)
    if "drift" in wanted:
        values["drift"] = undefined if reference is None else drift(x, reference)
    return values
