"""A comparison of fibers as files: numbers as JSON, images as bytes within a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.explain.comparison import Comparison, Side

MIB = 2**20
BYTES_OF_HEADERS = 4096
"""Room for the headers of the five arrays in an archive, 200 to 300 bytes each."""


def save_numbers(
    path: Path, comparison: Comparison, *, settings: Mapping[str, Any], versions: Mapping[str, str]
) -> None:
    """Write settings, markers, losses of all members, and versions as JSON; what is undefined is null.

    Args:
        path: of the file.
        comparison: from ``compare_fibers``.
        settings: plain values, of how it was made.
        versions: of what it was made with.
    """
    content = {
        "sentence": comparison.sentence,
        "loss": comparison.loss,
        "note": comparison.note,
        "settings": dict(settings),
        "markers": {name: estimate._asdict() for name, estimate in comparison.markers.items()},
        "before": _side(comparison.before),
        "after": _side(comparison.after),
        "versions": dict(versions),
    }
    path.write_text(json.dumps(_plain(content), indent=1) + "\n", encoding="utf-8")


def save_images(path: Path, comparison: Comparison, *, low: float, high: float, max_mib: float) -> str:
    """Write representatives, members and real neighbours as bytes (0: low, 255: high), of as many as the budget allows.

    Args:
        path: of the ``.npz`` file.
        comparison: from ``compare_fibers``.
        low: smallest value of the data.
        high: largest one.
        max_mib: of the file, in MiB: members are left out first, then representatives.

    Returns:
        A sentence on what was left out; "" if nothing was.

    Raises:
        InputError: not one representative with two members fits.
    """
    before, after = comparison.shown(comparison.before), comparison.shown(comparison.after)
    count, members = before.relative_loss.shape
    rows, kept = room_for(count, members, comparison.representatives[0].numel(), max_mib)

    def as_bytes(images: Tensor) -> Any:
        share = ((images.float() - low) / (high - low)).nan_to_num(nan=0.0).clamp(0, 1)
        return (255 * share).round().to(torch.uint8).numpy()

    np.savez_compressed(
        path,
        representatives=as_bytes(comparison.representatives[:rows]),
        before=as_bytes(before.samples[:rows, :kept]),
        after=as_bytes(after.samples[:rows, :kept]),
        nearest_before=as_bytes(comparison.pool[comparison.before.neighbours.place[:rows]]),
        nearest_after=as_bytes(comparison.pool[comparison.after.neighbours.place[:rows]]),
    )
    if (rows, kept) == (count, members):
        return ""
    return f"{path.name} holds {kept} of {members} members of {rows} of {count} fibers, as max_mib={max_mib:g} allows"


def room_for(count: int, members: int, size: int, max_mib: float) -> tuple[int, int]:
    """How many representatives, and members of each, fit into the images of both sides.

    Args:
        count: representatives.
        members: of each fiber.
        size: values, a byte each, of one image.
        max_mib: of the file, in MiB.

    Raises:
        InputError: not one representative with two members fits.

    >>> room_for(10, 8, 4096, 1.0), room_for(10, 8, 4096, 0.2)
    ((10, 8), (7, 2))
    """
    budget = _options.POSITIVE.number("max_mib", max_mib) * MIB - BYTES_OF_HEADERS
    kept = min(members, max(2, int((budget / (count * size) - 3) // 2)))
    rows = min(count, int(budget // (size * (3 + 2 * kept))))
    if rows < 1:
        raise InputError(f"max_mib={max_mib:g} has no room for one representative of {size} values: allow more")
    return rows, kept


def _side(side: Side) -> dict[str, Any]:
    return {
        "scale": side.scale,
        "nearest_real": side.neighbour_losses.tolist(),
        "strengths": [fibers.strength for fibers in side.fibers],
        "losses": [fibers.relative_loss.tolist() for fibers in side.fibers],
        "refused": [mask.tolist() for mask in side.refused],
        "not_finite": [int(fibers.relative_loss.isnan().sum()) for fibers in side.fibers],
        "ids": side.fibers[0].representative_ids.tolist(),
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN; six digits are more than is known of a loss."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
