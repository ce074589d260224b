"""The collected runs in one compressed file: columns of all runs of a task, five significant digits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_warning.decimals import decode, encode

RUNS = Path(__file__).parent / "runs.npz"
LATER = Path(__file__).parent / "later.npz"
"""Runs of a task that was made and opened after all settings: ``bags``."""
TUNED = Path(__file__).parent / "tuned.npz"
"""Runs of a second task with pretrained weights, made and opened after all settings of the default panel: ``lite``."""
FRESH = Path(__file__).parent / "fresh.npz"
"""New seeds of the six tasks, made and opened after all settings."""
FRESH_OLD = Path(__file__).parent / "fresh_old.npz"
"""As ``FRESH``, of the three old tasks, in the columns of :mod:`benchmarks.early_warning.trajectories`."""


@dataclass(frozen=True)
class Run:
    """One run, measurement by measurement."""

    task: str
    family: str
    seed: int
    onset: int | None
    """measurements before something changes; None: nothing does"""
    columns: dict[str, NDArray[np.float64]]


def pack(lines: Iterable[str], path: Path = RUNS) -> None:
    """Write the runs that ``collect`` has left, each once."""
    found = {(run["task"], run["family"], run["seed"]): run for run in map(json.loads, lines)}
    arrays: dict[str, NDArray[np.uint8] | NDArray[np.str_]] = {}
    for task in sorted({task for task, *_ in found}):
        runs = [run for key, run in sorted(found.items()) if key[0] == task]
        heads = [{name: run[name] for name in ("task", "family", "seed", "onset", "size")} for run in runs]
        arrays[f"{task}/runs"] = np.array([json.dumps(head) for head in heads])
        for name in runs[0]["columns"]:
            arrays[f"{task}/{name}"] = encode(value for run in runs for value in run["columns"][name])
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load(path: Path = RUNS) -> list[Run]:
    """All runs."""
    runs = []
    with np.load(path, allow_pickle=False) as file:
        for task in sorted({name.split("/")[0] for name in file.files}):
            heads = [json.loads(head) for head in file[f"{task}/runs"].tolist()]
            names = [name.split("/")[1] for name in file.files if name.startswith(f"{task}/") and "runs" not in name]
            columns = {name: decode(file[f"{task}/{name}"]).reshape(len(heads), -1) for name in names}
            for place, head in enumerate(heads):
                own = {name: values[place] for name, values in columns.items()}
                runs.append(Run(task, head["family"], head["seed"], head["onset"], own))
    return runs
