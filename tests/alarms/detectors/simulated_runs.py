"""Simulated healthy runs: every watched marker of a run in which classes form, and then little happens."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from geomonitor import Series
from tests.alarms.detectors.synthetic import COUNT, TIME, noisy, series

SCATTER = {
    "dimension": 0.006,
    "capacity": 0.003,
    "utility": 0.006,
    "cdnv": 0.007,
    "participation_ratio_per_class": 0.005,
    "mean_norm": 0.007,
    "accuracy": 0.004,
}
"""Median scatter of healthy runs of the bench, about half of a factor of ten either way; the rank moves by a unit."""
ERRORS = {"dimension": 0.03}
"""Relative standard error of a measurement, where it has one; those of the others are left out, which is harder."""
POINTS = 300
"""That the accuracy is measured on."""


def healthy_run(seed: int, markers: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Values of each marker, ``COUNT`` measurements; the same for a marker whichever others are asked for."""
    return {marker: _healthy(marker, seed) for marker in markers}


def restless_run(seed: int, markers: Iterable[str], noise: float) -> dict[str, NDArray[np.float64]]:
    """Nothing happens, but for white noise of this relative size in every marker; a third of it in the rank."""
    values = {marker: noisy(np.full(COUNT, 2.0), zlib.crc32(marker.encode()) + seed, noise) for marker in markers}
    if "numerical_rank" in values:
        values["numerical_rank"] = np.round(80 * (1 + (values["numerical_rank"] / 2 - 1) / 3))
    return values


def as_series(marker: str, values: NDArray[np.float64]) -> Series:
    """What a detector sees of them."""
    return series(values, ERRORS.get(marker, np.nan), marker=marker)


def _healthy(marker: str, seed: int) -> NDArray[np.float64]:
    place = zlib.crc32(marker.encode())
    draw = np.random.default_rng([11, seed, place])
    depth, pace, drift = draw.uniform(0, 1.2), draw.uniform(1, 4), draw.uniform(-0.001, 0.001)
    level = 2 * (1 + depth * np.exp(-TIME / pace)) * np.exp(drift * TIME)
    if marker == "numerical_rank":
        return np.round(40 * level + 0.3 * draw.standard_normal(COUNT))
    noise = SCATTER[marker] * np.exp(draw.standard_normal())
    if marker == "accuracy":  # rises to where it stays
        level = 0.95 * (1 - 0.5 * depth * np.exp(-TIME / pace))
        return np.round(POINTS * np.minimum(noisy(level, place + seed, noise), 1)) / POINTS
    values = noisy(level, place + seed, noise)
    return 1 / values if marker == "cdnv" else values  # worse when it rises
