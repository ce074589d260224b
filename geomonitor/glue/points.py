"""From raw features to the points that can carry an anchor: checked, scaled, sorted by class, without duplicates."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.markers.inputs import on_float64_device, require_labels, require_matrix

# Norms in this range have squares that neither overflow nor vanish.
SAFE_NORMS = (1e-140, 1e140)
# Padding all classes to the largest is simplest, as long as it adds no more than this part.
LARGEST_PADDING = 1.3


class Points(NamedTuple):
    """The points that can carry dual mass: ``z = norm * unit``, sorted by class."""

    units: Tensor  # (Q', N) float64, rows of length one
    norms: Tensor  # (Q',) float64, relative to the largest feature
    class_of: Tensor  # (Q',) int64, 0 .. P-1
    classes: int  # P, with those that have no nonzero point

    def with_units(self, rows: Tensor) -> Points:
        """The same points in other coordinates ``(Q', K)``; their lengths stay as they were."""
        return self._replace(units=rows / nonzero(torch.linalg.vector_norm(rows, dim=1))[:, None])


def check_features(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Checks features and labels once, at the public boundary.

    Returns:
        features without gradient, on a device that has float64, and class numbers ``0 .. P-1``.

    Raises:
        InputError: wrong rank, type or length, fewer than two classes, NaN or infinity.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise InputError(f"features must be a floating-point tensor of shape (Q, N), found {_describe(features)}.")
    if not isinstance(labels, Tensor):
        raise InputError(f"labels must be an integer tensor of shape (Q,), found {_describe(labels)}.")
    require_matrix(features)
    require_labels(labels, len(features))
    if features.shape[1] == 0:
        raise InputError("features must have at least one dimension, found shape (Q, 0).")
    if features.device.type == "mps":
        warnings.warn(
            "Apple's MPS has no float64: the geometry is computed on the CPU.",
            GeomonitorWarning,
            stacklevel=3,
        )
        features = on_float64_device(features)
    names, class_of = labels.to(features.device).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    if len(names) < 2:
        raise InputError(f"at least 2 classes are needed, found {len(names)}: pass labels of two or more classes.")
    if not bool(features.sum(dtype=torch.float64).isfinite()):  # one pass in the usual case; a sum may overflow
        finite = features.isfinite().all(dim=1)
        _require_finite(finite, class_of, names)
    return features.detach(), class_of


def _require_finite(finite: Tensor, class_of: Tensor, names: Tensor) -> None:
    if not bool(finite.all()):
        bad = class_of[~finite].bincount(minlength=len(names)).tolist()
        found = ", ".join(f"{n} of class {name}" for n, name in zip(bad, names.tolist(), strict=True) if n)
        raise InputError(f"features must be finite, found rows with NaN or infinity: {found}.")


def prepare_points(features: Tensor, class_of: Tensor) -> Points:
    """Scales out the size of the features, and leaves out what cannot change an anchor.

    A zero point carries no dual mass, and one copy of a repeated point of a class carries the mass of all.

    Args:
        features: ``(Q, N)``, finite, any float dtype.
        class_of: ``(Q,)``, ``0 .. P-1``.

    >>> points = prepare_points(torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 2.0], [1.0, 0.0]]).double(),
    ...                         torch.tensor([1, 1, 1, 0]))
    >>> points.class_of.tolist(), points.norms.tolist()
    ([0, 1], [0.5, 1.0])
    """
    classes = int(class_of.max()) + 1
    lengths = torch.linalg.vector_norm(features, dim=1, dtype=torch.float64)
    if not bool(((lengths > SAFE_NORMS[0]) & (lengths < SAFE_NORMS[1])).all()):
        features, class_of, lengths = _rescaled(features, class_of)
        if len(features) == 0:  # one zero point stands for them all: it is never active
            return Points(
                features.new_zeros(1, features.shape[1]), lengths.new_zeros(1), class_of.new_zeros(1), classes
            )
    if bool((class_of[1:] < class_of[:-1]).any()):
        order = class_of.argsort(stable=True)
        features, class_of, lengths = features[order], class_of[order], lengths[order]
    first = _first_copies(features, class_of, lengths)
    if not bool(first.all()):
        features, class_of, lengths = features[first], class_of[first], lengths[first]
    units = features.to(torch.float64, copy=True).div_(lengths[:, None])  # one copy in float64, not two
    return Points(units, lengths / lengths.max(), class_of, classes)


def _rescaled(features: Tensor, class_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that are not zero, scaled so that their squares neither overflow nor vanish, and their norms."""
    features = features.to(torch.float64)
    largest = features.abs().amax(dim=1)
    kept = largest > 0
    features, class_of, largest = features[kept], class_of[kept], largest[kept]
    features = features / largest.amax() if len(largest) else features
    largest = features.abs().amax(dim=1, keepdim=True)
    lengths = torch.linalg.vector_norm(features / largest, dim=1) * largest[:, 0]
    return features, class_of, lengths


def column_layout(class_of: Tensor, classes: int) -> tuple[Tensor, int]:
    """Columns of a joint problem, in segments of equal length that belong to one class each.

    A class is a segment unless the classes differ much in size; then a large one is several, and padding at
    most doubles the number of columns.

    Returns:
        the point of each column, -1 for padding, and the length of a segment, which divides their number.

    >>> column_layout(torch.tensor([0, 0, 1]), 2)[0].tolist()
    [0, 1, 2, -1]
    """
    counts = class_of.bincount(minlength=classes).tolist()
    length = max(1, *counts)
    if length * classes > LARGEST_PADDING * len(class_of):
        length = max(1, -(-len(class_of) // classes))
    columns, start = [], 0
    for count in counts:
        size = max(1, -(-count // length)) * length
        columns += [*range(start, start + count), *[-1] * (size - count)]
        start += count
    return torch.tensor(columns, device=class_of.device), length


def nonzero(lengths: Tensor) -> Tensor:
    """Lengths to divide by: 1 for a zero row, which stays zero."""
    return torch.where(lengths > 0, lengths, 1.0)


def _first_copies(rows: Tensor, class_of: Tensor, lengths: Tensor) -> Tensor:
    """Mask of the rows that do not repeat an earlier row of their class.

    Equal rows have equal norms, as these are computed alike; rows with equal norms are compared entry by entry. A copy
    that this missed would do no harm: the class's anchor is the same, however its mass is split.
    """
    first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    order = lengths.argsort(stable=True)
    order = order[class_of[order].argsort(stable=True)]
    before, after = order[:-1], order[1:]
    suspects = ((lengths[before] == lengths[after]) & (class_of[before] == class_of[after])).nonzero()[:, 0]
    if len(suspects):
        same = (rows[before[suspects]] == rows[after[suspects]]).all(dim=1)
        first[after[suspects[same]]] = False
    return first


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
