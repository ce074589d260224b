"""What the rounding of a layer hides: if the points of a class differ by little more, markers of it are NaN.

Nearly collapsed features in half precision: the distances of points within a class are rounding, and so would be the
markers.
"""

from __future__ import annotations

import torch

from geomonitor.glue.span import ROUNDINGS
from geomonitor.markers.formulas import PER_CLASS
from geomonitor.markers.layer_points import LayerPoints
from geomonitor.markers.table import MARKERS

# Roundings (`ROUNDINGS`: 1 unit in the last place of half precision, 16 of float32) that points have to lie apart from
# their class mean. In `benchmarks/conditioning.py` 2.6 of bfloat16 move `cdnv` by 1.4 standard errors over the points
# and 3.8 by 0.34; in float32 relative noise of 1e-7 moves it by 0.2 at 1.6.
APART = 3.0

VARIATION_MARKERS = frozenset(
    {"nc1", "nc1_ratio", "cdnv", "within_class_distance", "intrinsic_dimension", "mean_norm", "norm_variation"}
    | {name for name, row in MARKERS.items() if row.state == "spectrum" or name.endswith(PER_CLASS)}
)
"""Markers that depend on how the points of a class differ, or whose accuracy over points does."""


def variation_is_rounding(points: LayerPoints, dtype: str) -> bool:
    """Whether the points of the classes lie within a few roundings of their class means.

    Args:
        points: of one layer.
        dtype: in which the layer computed, such as ``"bfloat16"``.

    >>> x = torch.tensor([[1.0, 0.0], [1.001, 0.0], [0.0, 1.0], [0.0, 1.001]])
    >>> points = LayerPoints(x, torch.tensor([0, 0, 1, 1]))
    >>> variation_is_rounding(points, "float32"), variation_is_rounding(points, "bfloat16")
    (False, True)
    """
    several = points.moments.counts > 1
    spread = points.moments.spread[several].sum() / points.moments.counts[several].sum()  # NaN if there are none
    length = points.features.square().sum(dim=1).mean().sqrt()
    least = APART * ROUNDINGS.get(getattr(torch, dtype, torch.float32), 0.0) * length
    return bool(spread.sqrt() < least)
