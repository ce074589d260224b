"""What is trained: a recipe for each family, task and seed, which draws rates, sizes and onsets.

The name of a family says what is done, not what comes of it: whether a run is harmed is read off its truth.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from benchmarks.early_warning.families import log_uniform
from benchmarks.elsewhere.tasks import RATES, SIZES, TaskName

PLAIN = ("constant_rate", "high_rate", "cosine", "step", "warmup", "small_data", "regularised", "long")
"""Nothing changes on the way."""
PLANNED = (
    *("label_smoothing", "mixup", "augmentation", "dropout", "data_added", "classes_added"),
    *("optimizer", "rewarming", "pruning", "unfreezing"),
)
"""A change that its team intends, and could announce."""
FAULTS = (
    *("weight_decay", "decay_ramp", "decay_from_start", "rate_kill", "early_kill", "forgetting", "half_layer"),
    *("duplicated_batch", "normalisation", "precision", "label_noise", "narrowing"),
)
FAMILIES = (*PLAIN, *PLANNED, *FAULTS)
SEEDS = {**dict.fromkeys(PLAIN, 3), **dict.fromkeys(PLANNED, 2), **dict.fromkeys(FAULTS, 2)}
"""Runs of a family on each task."""
LONG = 2
"""A long run is so many times as long; every second measurement is kept."""


@dataclass(frozen=True)
class Recipe:
    """All that makes a run."""

    family: str
    task: TaskName
    seed: int
    optimizer: Literal["sgd", "adamw"]
    lr: float
    schedule: Literal["constant", "step", "cosine", "warmup"] = "constant"
    weight_decay: float = 0.0
    dropout: float = 0.0
    share: float = 1.0
    length: int = 1
    onset: int | None = None
    """measurements before something changes"""
    size: float = math.nan
    width: int = 96
    """of the features"""

    @property
    def stream(self) -> int:
        """Seed of data, weights and order: another one for each run."""
        return zlib.crc32(f"elsewhere/{self.family}/{self.task}/{self.seed}".encode())


def recipe(family: str, task: TaskName, seed: int) -> Recipe:
    """The recipe of one run."""
    draw = np.random.default_rng([zlib.crc32(b"elsewhere"), zlib.crc32(f"{family}/{task}".encode()), seed])
    sgd = task in ("conv_bn", "simclr") or (task in ("pairs", "bags", "lite") and seed % 2 == 0)
    optimizer: Literal["sgd", "adamw"] = "sgd" if sgd else "adamw"
    lr = RATES[task][optimizer] * log_uniform(draw, 0.5, 1.5)
    schedules = ("constant", "constant", "cosine", "warmup")
    base = Recipe(family, task, seed, optimizer, lr, schedules[int(draw.integers(4))])  # type: ignore[arg-type]
    base = replace(base, weight_decay=_decay(base, 3e-4 if seed % 2 else 0.0))
    if family in PLAIN:
        changes: dict[str, dict[str, object]] = {
            "constant_rate": {"schedule": "constant"},
            "high_rate": {"schedule": "constant", "lr": RATES[task][optimizer] * log_uniform(draw, 1.5, 3)},
            "cosine": {"schedule": "cosine"},
            "step": {"schedule": "step"},
            "warmup": {"schedule": "warmup"},
            "small_data": {"share": draw.uniform(0.15, 0.35)},
            "regularised": {
                "dropout": draw.uniform(0.1, 0.4),
                "weight_decay": _decay(base, log_uniform(draw, 3e-4, 2e-3)),
            },
            "long": {"length": LONG, "schedule": "constant"},
        }
        return replace(base, **changes[family])  # type: ignore[arg-type]
    sizes = SIZES[task]
    count = sizes.epochs * sizes.checks
    onset = int(draw.integers(count // 4, count * 2 // 3))
    size = draw.uniform(0, 1)
    """how strong, from mild to severe"""
    if family in ("decay_from_start", "early_kill"):
        onset = 0 if family == "decay_from_start" else int(draw.integers(1, 4))
    if family == "rewarming":
        base = replace(base, schedule="cosine")
    return replace(base, onset=onset, size=size)


def decay_of(recipe: Recipe) -> float:
    """Weight decay of a fault: from what is usual to what removes a network within epochs."""
    return _decay(recipe, 2e-3 * 40**recipe.size)


def _decay(base: Recipe, of_sgd: float) -> float:
    """Weight decay that shrinks weights as fast as ``of_sgd`` does under SGD with momentum 0.9 at the usual rate."""
    if base.optimizer == "sgd":
        return of_sgd
    rates = RATES[base.task]
    return of_sgd * 10 * rates["sgd"] / rates["adamw"]
