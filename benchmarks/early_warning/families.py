"""Failing and healthy families of runs: a recipe for each family, task and seed, which draws size and onset."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from benchmarks.early_warning.tasks import TaskName

EPOCHS = 24
SEEDS, HEALTHY_SEEDS = 36, 32
"""Runs on each task, of a failing family and of a healthy one."""

FAILING = (
    *("weight_decay", "neural_collapse", "lr_kill", "label_leak"),
    *("narrowing", "forgetting", "broken_resume", "class_imbalance"),
)
HEALTHY = (
    *("constant", "step", "cosine", "warmup", "sgd", "adamw", "dropout", "label_smoothing", "augmentation"),
    *("batch_norm", "mild_weight_decay", "larger_batches", "resumed"),
)
FAMILIES = (*FAILING, *HEALTHY)
LEARNING_RATE = {
    "mnist": {"sgd": 0.05, "adamw": 2e-3},
    "digits": {"sgd": 0.05, "adamw": 2e-3},
    "bytes": {"sgd": 0.05, "adamw": 3e-3},
}


@dataclass(frozen=True)
class Recipe:
    """All that makes a run, but the data."""

    family: str
    task: TaskName
    seed: int
    optimizer: Literal["sgd", "adamw"]
    lr: float
    schedule: Literal["constant", "step", "cosine", "warmup", "restarts"] = "constant"
    weight_decay: float = 0.0
    batch_size: int = 64
    passes: int = 1  # over the data in an epoch, that is, between two measurements
    dropout: float = 0.0
    label_smoothing: float = 0.0
    augment: bool = False
    batch_norm: bool = False
    resume_epoch: int | None = None  # stopped before this epoch, saved, rebuilt and resumed
    fault: str | None = None
    onset: int | None = None  # the first epoch that is trained with the fault
    size: float = math.nan
    variant: str = ""

    @property
    def healthy(self) -> bool:
        return self.family in HEALTHY

    @property
    def stream(self) -> int:
        """Seed of data, weights and order: another one for each run."""
        return zlib.crc32(f"{self.family}/{self.task}/{self.seed}".encode())


def recipe(family: str, task: TaskName, seed: int) -> Recipe:
    """The recipe of one run."""
    draw = np.random.default_rng([zlib.crc32(family.encode()), zlib.crc32(task.encode()), seed])
    # A transformer is trained with AdamW, the others mostly with SGD.
    optimizer: Literal["sgd", "adamw"] = "adamw" if task == "bytes" or seed % 4 == 3 else "sgd"
    optimizer = {"sgd": "sgd", "adamw": "adamw"}.get(family, optimizer)  # type: ignore[assignment]
    lr = LEARNING_RATE[task][optimizer] * log_uniform(draw, 0.4, 1.5)
    base = Recipe(family, task, seed, optimizer, lr, batch_size=32 if task == "digits" else 64)
    return _failing(base, draw) if family in FAILING else _healthy(base, draw)


def _failing(base: Recipe, draw: np.random.Generator) -> Recipe:
    onset = int(draw.integers(7, 15))
    base = replace(base, fault=base.family, onset=onset)
    if base.family == "weight_decay":
        return replace(base, size=_decay(base, log_uniform(draw, 1.5e-2, 5e-2)))
    if base.family == "neural_collapse":  # its onset is found in the run: see README.md
        decay = _decay(base, log_uniform(draw, 4e-3, 1.2e-2))
        return replace(base, lr=base.lr * 1.5, weight_decay=decay, passes=3, size=decay, onset=None)
    if base.family == "lr_kill":
        # More than this kills every unit; under AdamW it takes twice as much.
        factor = log_uniform(draw, 6, 14) * (2 if base.optimizer == "adamw" else 1)
        return replace(base, size=factor, variant=f"{draw.integers(1, 3)} epochs")
    if base.family == "narrowing":
        return replace(base, size=log_uniform(draw, 0.7, 7), variant=f"{draw.integers(1, 4)} directions")
    if base.family == "broken_resume":
        return replace(base, size=draw.uniform(0.5, 1), variant=("reinitialised", "zeroed", "optimizer")[base.seed % 3])
    # What the data no longer need is forgotten by weight decay: without any, these three leave the features alone.
    base = replace(base, weight_decay=_decay(base, 3e-3))
    if base.family == "label_leak":
        return replace(base, size=draw.uniform(0.9, 1.0), variant=("train", "train and validation")[base.seed % 2])
    if base.family == "forgetting":  # the factor on the learning rate of the fine-tuning
        return replace(base, size=log_uniform(draw, 1, 4))
    return replace(base, size=log_uniform(draw, 10, 200))


def _healthy(base: Recipe, draw: np.random.Generator) -> Recipe:
    # Some learn slowly: a third of the usual rate and less.
    base = replace(base, lr=base.lr * (draw.uniform(0.2, 0.5) if base.seed % 4 == 1 else 1))
    if base.family in ("constant", "step", "cosine", "warmup"):
        return replace(base, schedule=base.family)  # type: ignore[arg-type]
    base = replace(base, schedule=("constant", "step", "cosine", "warmup")[int(draw.integers(4))])
    changes: dict[str, dict[str, object]] = {
        "sgd": {},
        "adamw": {"weight_decay": 0.01},
        "dropout": {"dropout": draw.uniform(0.1, 0.5)},
        "label_smoothing": {"label_smoothing": draw.uniform(0.02, 0.1)},
        "augmentation": {"augment": True},
        "batch_norm": {"batch_norm": True},
        "mild_weight_decay": {"weight_decay": _decay(base, log_uniform(draw, 1e-4, 5e-4))},
        "larger_batches": {"batch_size": int(base.batch_size * draw.integers(2, 5))},
        "resumed": {"resume_epoch": int(draw.integers(7, 15))},
    }
    return replace(base, **changes[base.family])  # type: ignore[arg-type]


def _decay(base: Recipe, of_sgd: float) -> float:
    """Weight decay that shrinks weights as fast as ``of_sgd`` does under SGD (momentum 0.9) at the usual rate."""
    if base.optimizer == "sgd":
        return of_sgd
    rates = LEARNING_RATE[base.task]
    return of_sgd * 10 * rates["sgd"] / rates["adamw"]


def log_uniform(draw: np.random.Generator, low: float, high: float) -> float:
    """A number between ``low`` and ``high`` whose logarithm is uniform."""
    return float(np.exp(draw.uniform(np.log(low), np.log(high))))
