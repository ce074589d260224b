"""The cached runs in two compressed files: one array for each column, one row for each run; columns: README.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_warning.decimals import decode, encode
from benchmarks.early_warning.families import HEALTHY, Recipe

FOLDER = Path(__file__).parent
RUNS = "runs.npz"
"""All runs, measured at the end of each epoch."""
WITHIN = "within_epochs.npz"
"""Some of them, measured so many times an epoch:"""
CHECKS = 4
NAMES = ("family", "task", "seed", "onset", "size", "variant")
"""Columns that hold one value for each run."""
TERMINAL_SHARE = 0.99
"""Of the highest training accuracy of a run: from there on it is in its terminal phase."""


@dataclass(frozen=True)
class Run:
    """One run, epoch by epoch."""

    family: str
    task: str
    seed: int
    healthy: bool
    onset: int | None
    """first epoch that is trained with the fault; None in a healthy run. Of ``neural_collapse``: the first epoch with
    99 % of the highest training accuracy of the run"""
    size: float
    """how strong the fault is, in the unit of its family; NaN in a healthy run"""
    variant: str
    columns: dict[str, NDArray[np.float64]]
    """every other column by its name, each of the length of the run; NaN where a marker is undefined"""


def load_runs(path: Path = FOLDER / RUNS) -> list[Run]:
    """All cached runs, by family, task and seed."""
    arrays = _arrays(path)
    of_runs = {name: arrays.pop(name) for name in NAMES}
    onsets, sizes = (decode(of_runs[name])[:, 0].tolist() for name in ("onset", "size"))
    families, tasks, seeds, variants = (of_runs[name].tolist() for name in ("family", "task", "seed", "variant"))
    columns = {name: decode(planes) for name, planes in arrays.items()}
    runs = []
    for index, family in enumerate(families):
        of_run = {name: values[index] for name, values in columns.items()}
        runs.append(
            Run(
                family=family,
                task=tasks[index],
                seed=seeds[index],
                healthy=family in HEALTHY,
                onset=_terminal(of_run) if family == "neural_collapse" else _epoch(onsets[index]),
                size=sizes[index],
                variant=variants[index],
                columns=of_run,
            )
        )
    return sorted(runs, key=lambda run: (run.family, run.task, run.seed))


def cached_runs(path: Path) -> set[tuple[str, str, int]]:
    """Family, task and seed of the runs in a file; none where there is no file."""
    if not path.exists():
        return set()
    with np.load(path, allow_pickle=False) as file:
        return set(zip(*(file[name].tolist() for name in NAMES[:3]), strict=True))


def add_run(path: Path, recipe: Recipe, rows: Iterable[Mapping[str, float]]) -> None:
    """Add a run to a file, which a kill leaves as it was before."""
    rows = list(rows)
    of_run: dict[str, NDArray[Any]] = {
        "family": np.array([recipe.family]),
        "task": np.array([recipe.task]),
        "seed": np.array([recipe.seed]),
        "onset": encode([recipe.onset])[:, None],
        "size": encode([recipe.size])[:, None],
        "variant": np.array([recipe.variant]),
    }
    of_run |= {name: encode(row[name] for row in rows)[:, None] for name in rows[0]}
    if path.exists():
        arrays = _arrays(path)
        if [*arrays] != [*of_run] or any(arrays[name].shape[2:] != of_run[name].shape[2:] for name in of_run):
            raise ValueError(
                f"{path} has other columns or another number of rows than this run; remove it to collect its runs anew"
            )
        of_run = {
            name: np.concatenate([arrays[name], values], axis=0 if values.ndim == 1 else 1)
            for name, values in of_run.items()
        }
    beside = path.with_name(path.name + ".partial")
    with beside.open("wb") as file:
        np.savez_compressed(file, **of_run)
    beside.replace(path)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _epoch(onset: float) -> int | None:
    return None if math.isnan(onset) else int(onset)


def _terminal(columns: Mapping[str, NDArray[np.float64]]) -> int:
    accuracy = columns["train_accuracy"]
    return int(np.argmax(accuracy >= TERMINAL_SHARE * accuracy.max()))
