"""The cached runs: one CSV for each family and task, one row for each run and epoch. The columns are in README.md."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_warning.families import HEALTHY, Recipe

FOLDER = Path(__file__).parent / "trajectories"
WITHIN = "within_epochs"
"""Folder in it: some of the runs, measured so many times an epoch:"""
CHECKS = 4
NAMES = ("family", "task", "seed", "onset", "size", "variant")
"""Columns that are the same in all rows of a run."""
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


def load_runs(folder: Path = FOLDER) -> list[Run]:
    """All cached runs, by family, task and seed."""
    runs = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        runs += [_run(list(of_run)) for _, of_run in groupby(rows, lambda row: row["seed"])]
    return sorted(runs, key=lambda run: (run.family, run.task, run.seed))


def path_of(recipe: Recipe, folder: Path = FOLDER) -> Path:
    """The file that a run is in."""
    return folder / f"{recipe.family}-{recipe.task}.csv"


def cached_seeds(path: Path) -> set[int]:
    """Seeds of the runs in a file; none where there is no file."""
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {int(row["seed"]) for row in csv.DictReader(file)}


def add_run(path: Path, recipe: Recipe, rows: Iterable[Mapping[str, float]]) -> None:
    """Add a run to its file, which a kill leaves as it was before."""
    rows = list(rows)
    header = ",".join([*NAMES, *rows[0]]) + "\n"
    text = path.read_text(encoding="utf-8") if path.exists() else header
    if not text.startswith(header):
        raise ValueError(f"{path} has other columns than this run; remove it to collect its runs anew")
    names = [recipe.family, recipe.task, recipe.seed, _told(recipe.onset), _told(recipe.size), recipe.variant]
    for row in rows:
        text += ",".join([*map(str, names), *(_told(value) for value in row.values())]) + "\n"
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8", newline="")
    beside.replace(path)


def _told(value: float | None) -> str:
    """Five significant digits; empty for what is undefined."""
    return "" if value is None or math.isnan(value) else f"{value:.5g}"


def _run(rows: list[dict[str, str]]) -> Run:
    first = rows[0]
    columns = {
        name: np.array([float(row[name] or "nan") for row in rows], dtype=np.float64)
        for name in first
        if name not in NAMES
    }
    onset = int(first["onset"]) if first["onset"] else None
    if first["family"] == "neural_collapse":
        accuracy = columns["train_accuracy"]
        onset = int(np.argmax(accuracy >= TERMINAL_SHARE * accuracy.max()))
    return Run(
        family=first["family"],
        task=first["task"],
        seed=int(first["seed"]),
        healthy=first["family"] in HEALTHY,
        onset=onset,
        size=float(first["size"] or "nan"),
        variant=first["variant"],
        columns=columns,
    )
