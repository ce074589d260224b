"""Series with a known fault, or none; forty measurements unless said otherwise."""

from __future__ import annotations

import numpy as np

from geomonitor import Series

NOISE = 0.03
"""Relative standard error of a measurement at T = 200, and the scatter of a healthy run, in trials 2-4 %."""
COUNT = 40
ONSET = 20
TIME = np.arange(COUNT)
FAULT = np.where(TIME < ONSET, 1.0, 0.7)
RAMP = np.where(TIME < ONSET, 1.0, np.maximum(0.6, 0.95 ** (TIME - ONSET + 1.0)))
WARM_UP = 2 + 2 * np.exp(-TIME / 3)  # falls by half while the classes form


def series(values, errors: float = NOISE, *, epochs=None, marker: str = "dimension") -> Series:
    values = np.asarray(values, dtype=float)
    epochs = np.arange(len(values)) if epochs is None else np.asarray(epochs)
    return Series("fc", marker, 10 * epochs, epochs.astype(float), values, errors * np.abs(values))


def noisy(level, seed: int, noise: float = NOISE) -> np.ndarray:
    level = np.asarray(level, dtype=float)
    return level * (1 + noise * np.random.default_rng(seed).standard_normal(len(level)))


def first_alarm(values, detector, errors: float = NOISE) -> int | None:
    """Number of the measurement at which the alarm is first on, as a run sees it: one measurement after the other."""
    return next((n for n in range(len(values)) if detector(series(values[: n + 1], errors)).declined), None)


def healthy(seed: int) -> np.ndarray:
    """A healthy run: classes form at some pace to some depth, then nothing or a slow drift; the noise is its own."""
    draw = np.random.default_rng([7, seed])
    depth, pace = draw.uniform(0, 1.2), draw.uniform(1, 4)
    drift = draw.uniform(-0.003, 0.003)
    level = 2 * (1 + depth * np.exp(-TIME / pace)) * np.exp(drift * TIME)
    return noisy(level, seed, noise=draw.uniform(0.01, 0.04))
