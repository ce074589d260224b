"""From raw features to the points that can carry an anchor: checked, scaled, sorted by class, without
duplicates.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.markers.inputs import on_float64_device, require_labels, require_matrix

# Odd 64-bit multipliers make the sum of products a hash of a row's bits; equal rows are then compared entry
# by entry.
_HASH_SEED = 20250
# Rows are hashed in blocks of about this many entries, so that the integer products stay small.
_HASH_BLOCK_ENTRIES = 1 << 23
# Padding all classes to the largest is simplest, as long as it adds no more than this part.
LARGEST_PADDING = 1.3


class Points(NamedTuple):
    """The points that can carry dual mass: ``z = norm * unit``, sorted by class."""

    units: Tensor  # (Q', N) float64, rows of length one
    norms: Tensor  # (Q',) float64, relative to the largest feature
    class_of: Tensor  # (Q',) int64, 0 .. P-1
    classes: int  # P, with those that have no nonzero point


def check_features(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Checks features and labels once, at the public boundary.

    Returns:
        features as float64 without gradient, on a device that has float64, and class numbers ``0 .. P-1``.

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
    finite = features.isfinite().all(dim=1)
    if not bool(finite.all()):
        bad = class_of[~finite].bincount(minlength=len(names)).tolist()
        found = ", ".join(f"{n} of class {name}" for n, name in zip(bad, names.tolist(), strict=True) if n)
        raise InputError(f"features must be finite, found rows with NaN or infinity: {found}.")
    return features.detach().to(torch.float64), class_of


def prepare_points(features: Tensor, class_of: Tensor) -> Points:
    """Scales out the size of the features, and leaves out what cannot change an anchor.

    A zero point carries no dual mass, and one copy of a repeated point of a class carries the mass of all.

    Args:
        features: ``(Q, N)``, finite, float64.
        class_of: ``(Q,)``, ``0 .. P-1``.

    >>> points = prepare_points(torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 2.0], [1.0, 0.0]]).double(),
    ...                         torch.tensor([1, 1, 1, 0]))
    >>> points.class_of.tolist(), points.norms.tolist()
    ([0, 1], [0.5, 1.0])
    """
    classes = int(class_of.max()) + 1
    largest = features.abs().amax(dim=1)  # row by row first: squares of 1e-170 would underflow
    kept = (largest > 0).nonzero()[:, 0]
    kept = kept[class_of[kept].argsort(stable=True)]
    rows = features[kept] / largest[kept, None]
    lengths = torch.linalg.vector_norm(rows, dim=1)
    units = rows / lengths[:, None]
    sizes = largest[kept]
    norms = lengths * (sizes / sizes.max() if len(sizes) else sizes)
    first = _first_copies(features[kept], class_of[kept])
    if not bool(first.all()):
        kept, units, norms = kept[first], units[first], norms[first]
    if len(kept) == 0:  # one zero point stands for them all: it is never active
        return Points(features.new_zeros(1, features.shape[1]), features.new_zeros(1), class_of[:1] * 0, classes)
    return Points(units, norms / norms.max(), class_of[kept], classes)


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


def _first_copies(rows: Tensor, class_of: Tensor) -> Tensor:
    """Mask of the rows that do not repeat an earlier row of their class."""
    first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    hashes = _row_hashes(rows)
    order = hashes.argsort(stable=True)
    order = order[class_of[order].argsort(stable=True)]
    before, after = order[:-1], order[1:]
    suspects = ((hashes[before] == hashes[after]) & (class_of[before] == class_of[after])).nonzero()[:, 0]
    if len(suspects):
        same = (rows[before[suspects]] == rows[after[suspects]]).all(dim=1)
        first[after[suspects[same]]] = False
    return first


def _row_hashes(rows: Tensor) -> Tensor:
    """One integer per row; integer sums are exact, so equal rows have equal hashes in whatever order they are
    summed.
    """
    generator = torch.Generator().manual_seed(_HASH_SEED)
    multipliers = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator).to(rows.device) * 2 + 1
    step = max(1, _HASH_BLOCK_ENTRIES // rows.shape[1])
    blocks = [((block + 0.0).view(torch.int64) * multipliers).sum(dim=1) for block in torch.split(rows, step)]
    return torch.cat(blocks) if blocks else rows.new_zeros(0, dtype=torch.int64)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
