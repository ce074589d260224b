"""A bounded, repeatable choice of points per class: the same points in any order, batch split or number of processes.

The id of a point gives it a pseudo-random priority that depends on the seed and the id alone; each class keeps its
``M`` points of lowest priority (bottom-k sampling). Such choices can be merged: the lowest of the lowest are the lowest
of all. A point that comes twice, as from padding samplers, counts once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EMPTY = torch.iinfo(torch.int64).max
"""Priority of a slot that holds no point."""


class Reservoir(NamedTuple):
    """Up to ``M`` points of each of ``P`` classes, lowest priority first."""

    features: Tensor
    """``(P, M, N)``; the content of an empty slot has no meaning"""
    priorities: Tensor
    """``(P, M)`` int64, ``EMPTY`` for a slot without a point"""


def priority(ids: Tensor, seed: int) -> Tensor:
    """Pseudo-random 63-bit priorities of ids of points; distinct ids collide with probability below ``Q^2 / 2^64``.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), in wrapping 64-bit integers.

    >>> priority(torch.tensor([0, 1, 0]), seed=7).unique().numel()
    2
    """
    golden, first, second = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
    x = ids.to(torch.int64) * golden + _signed((seed + 1) * 0xD1342543DE82EF95)
    x = (x ^ _shift(x, 30)) * first
    x = (x ^ _shift(x, 27)) * second
    return _shift(x ^ _shift(x, 31), 1) % EMPTY


def empty_reservoir(classes: int, per_class: int, features: Tensor) -> Reservoir:
    """A reservoir without points, on the device and of the width of ``features (B, N)``."""
    return Reservoir(
        features.new_zeros((classes, per_class, features.shape[1])),
        torch.full((classes, per_class), EMPTY, dtype=torch.int64, device=features.device),
    )


def add_points(reservoir: Reservoir, features: Tensor, labels: Tensor, priorities: Tensor) -> Reservoir:
    """The reservoir after some more points; shapes do not depend on values, so nothing waits for the device.

    Args:
        reservoir: ``P`` classes, ``M`` points each at the most.
        features: ``(B, N)``.
        labels: ``(B,)``; points outside ``0 .. P-1`` are left out.
        priorities: ``(B,)`` from :func:`priority`.
    """
    classes, per_class = reservoir.priorities.shape
    held = torch.arange(classes, device=labels.device).repeat_interleave(per_class)
    known = (labels >= 0) & (labels < classes)
    label = torch.cat([held, torch.where(known, labels, classes)])
    order = torch.cat([reservoir.priorities.flatten(), priorities])
    points = torch.cat([reservoir.features.flatten(0, 1), features])

    by_priority = torch.argsort(order, stable=True)
    sorted_rows = by_priority[torch.argsort(label[by_priority], stable=True)]
    label, order = label[sorted_rows], order[sorted_rows]

    repeated = torch.zeros_like(known.new_empty(len(label)))
    repeated[1:] = (label[1:] == label[:-1]) & (order[1:] == order[:-1])
    kept = ~repeated & (order != EMPTY) & (label < classes)
    kept_before = torch.cumsum(kept, 0) - 1
    per_label = torch.zeros(classes + 1, dtype=torch.int64, device=label.device)
    per_label = per_label.index_add(0, label, kept.to(torch.int64))
    rank = kept_before - (torch.cumsum(per_label, 0) - per_label)[label]

    slots = classes * per_class  # one more takes all that is not kept
    slot = torch.where(kept & (rank < per_class), label * per_class + rank, slots)
    source = torch.zeros(slots + 1, dtype=torch.int64, device=label.device).scatter(0, slot, sorted_rows)
    chosen = torch.full((slots + 1,), EMPTY, dtype=torch.int64, device=label.device).scatter(0, slot, order)
    return Reservoir(
        points[source[:slots]].reshape(classes, per_class, -1),
        chosen[:slots].reshape(classes, per_class),
    )


def merge_reservoirs(parts: list[Reservoir]) -> Reservoir:
    """The reservoir of all points that any of the parts has seen."""
    merged = parts[0]
    classes, per_class = merged.priorities.shape
    labels = torch.arange(classes, device=merged.priorities.device).repeat_interleave(per_class)
    for part in parts[1:]:
        merged = add_points(merged, part.features.flatten(0, 1), labels, part.priorities.flatten())
    return merged


def points_and_labels(reservoir: Reservoir) -> tuple[Tensor, Tensor]:
    """The points held, ``(Q, N)``, and their classes, ``(Q,)``, class by class."""
    filled = reservoir.priorities != EMPTY
    labels = torch.nonzero(filled)[:, 0]
    return reservoir.features[filled], labels


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
