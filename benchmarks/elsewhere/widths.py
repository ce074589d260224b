"""Whether markers order finished models of four widths by transfer to new classes, raw and at fixed width.

OMP_NUM_THREADS=1 python -m benchmarks.elsewhere.widths build/widths.jsonl    # trains what is missing; half an hour
python -m benchmarks.elsewhere.widths                                         # the tables, from widths.json
python -m benchmarks.elsewhere.widths --pack build/widths.jsonl               # writes widths.json

48 models of each of four tasks: two choices of known classes, four widths, three learning rates, with and without
weight decay. The models of one choice of classes have the same data, so that the truth of two of them can be compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

import geomonitor as gm
from benchmarks.elsewhere.finished import BOOTSTRAPS
from benchmarks.elsewhere.recipes import Recipe
from benchmarks.elsewhere.tasks import RATES, TaskName, load_task
from benchmarks.elsewhere.training import RIDGE, Loop
from benchmarks.elsewhere.truth import measure_truth

SAVED = Path(__file__).parent / "widths.json"
TASKS: tuple[TaskName, ...] = ("conv_bn", "pairs", "bags", "vit")
CHOICES = (0, 1)
"""Of known classes."""
WIDTHS = (24, 48, 96, 192)
RATE_FACTORS = (0.4, 1.0, 2.5)
DECAYS = (0.0, 1e-3)
"""Under SGD; AdamW has one that shrinks weights as fast."""
MARKERS = (
    *("dimension", "utility", "capacity", "radius", "numerical_rank", "effective_rank", "rankme"),
    *("participation_ratio", "participation_ratio_per_class", "cdnv", "nc1", "mean_norm"),
)
COLUMNS = (*MARKERS, "val_accuracy", "width")
Model = dict[str, float | str]


def recipes() -> list[tuple[int, Recipe]]:
    """Choice of classes and recipe of every model; one model of each task first."""
    grid = itertools.product(CHOICES, WIDTHS, RATE_FACTORS, DECAYS, TASKS)
    found = []
    for choice, width, factor, decay, task in grid:
        optimizer = "adamw" if task == "vit" else "sgd"
        rates = RATES[task]
        scaled = decay if optimizer == "sgd" else decay * 10 * rates["sgd"] / rates["adamw"]
        seed = zlib.crc32(f"{choice}/{width}/{factor}/{decay}".encode()) % 10_000
        own = Recipe("widths", task, seed, optimizer, factor * rates[optimizer], "cosine", scaled)  # type: ignore[arg-type]
        found.append((choice, replace(own, width=width)))
    return found


def trained(choice: int, recipe: Recipe) -> Model:
    """Train a model; markers at a quarter of the training (``early_...``) and at the end, and the truth at the end."""
    task = load_task(recipe.task, zlib.crc32(f"widths/{recipe.task}/{choice}".encode()))
    torch.manual_seed(recipe.stream)
    loop = Loop(recipe, task)
    probe = gm.ProbeSet.from_dataset(task.probe, per_class=task.sizes.probe, classes=task.sizes.known)
    monitor = gm.GeometryMonitor(
        probe, layers={"features": "body"}, markers=MARKERS, panel=None, geometry={"ridge": RIDGE}
    )
    count = task.sizes.epochs * task.sizes.checks
    found: Model = {"task": recipe.task, "choice": choice, "width": recipe.width, "seed": recipe.seed}
    for check in range(1, count + 1):
        for part in range(2):
            loop.train_half(check - 1, 0, part)
        if check in (count // 4, count):
            records = monitor.measure(loop.model, step=loop.step, epoch=check)
            early = "" if check == count else "early_"
            found |= {early + r.marker: r.value for r in records if r.marker in MARKERS}
            found[f"{early}val_accuracy"] = loop.validate()["val_accuracy"]
    return found | {"truth": measure_truth(task)(loop.model)["unseen_accuracy"]}


def correlation(
    values: NDArray[np.float64], truth: NDArray[np.float64], groups: list[tuple[object, ...]]
) -> tuple[float, float, float]:
    """Spearman's rank correlation within groups, with a 95 % interval by resampling models within groups.

    Ranks are taken in each group and their mean is subtracted, so that only differences within a group count.

    >>> x, groups = np.arange(20.0), [(i // 10,) for i in range(20)]
    >>> correlation(x, np.concatenate([x[:10], x[:10] - 100]), groups)
    (1.0, 1.0, 1.0)
    """
    if not np.isfinite(values).all():
        return (math.nan,) * 3
    places = [np.array([i for i, g in enumerate(groups) if g == group]) for group in sorted(set(groups), key=str)]
    draw = np.random.default_rng(0)
    chosen = [np.vstack([own, own[draw.integers(len(own), size=(BOOTSTRAPS, len(own)))]]) for own in places]
    x, y = (np.hstack([_centred_ranks(part[own]) for own in chosen]) for part in (values, truth))
    with np.errstate(invalid="ignore"):  # a sample of one model, again and again, has no correlation
        found = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    if math.isnan(found[0]):  # constant in each group
        return (math.nan,) * 3
    low, high = np.nanquantile(found[1:], (0.025, 0.975))
    return round(float(found[0]), 2), round(float(low), 2), round(float(high), 2)


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks = rankdata(values, axis=1)
    centred: NDArray[np.float64] = ranks - ranks.mean(1, keepdims=True)
    return centred


def table(models: list[Model], *, early: bool) -> list[str]:
    """A row for each marker; a task has two columns: all widths together, and each width by itself."""
    tasks = sorted({str(m["task"]) for m in models})
    head = [f"{task}, {kind}" for task in tasks for kind in ("all widths", "fixed width")]
    rows = ["| marker | " + " | ".join(head) + " |", "|" + "---|" * (1 + len(head))]
    for name in COLUMNS:
        cells = []
        for task in tasks:
            own = [m for m in models if m["task"] == task]
            key = f"early_{name}" if early and name != "width" else name
            values = np.array([float(m[key]) for m in own])
            truth = np.array([float(m["truth"]) for m in own])
            for group in (("choice",), ("choice", "width")):
                if name == "width" and "width" in group:
                    cells.append("-")
                    continue
                found, low, high = correlation(values, truth, [tuple(m[g] for g in group) for m in own])
                cells.append("-" if math.isnan(found) else f"{found:+.2f} ({low:+.2f} to {high:+.2f})")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def collect(path: Path) -> None:
    """Train the models that are not in a file yet, one line of JSON each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    done = {(m["task"], m["choice"], m["width"], m["seed"]) for m in map(json.loads, lines)}
    for choice, recipe in recipes():
        if (recipe.task, choice, recipe.width, recipe.seed) not in done:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(trained(choice, recipe)) + "\n")


def load() -> list[Model]:
    """The models in the repository."""
    columns: dict[str, list[float | str]] = json.loads(SAVED.read_text(encoding="utf-8"))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def pack(path: Path) -> None:
    """Write ``widths.json``: columns, five significant digits."""
    models = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    columns = {
        name: [m[name] if isinstance(m[name], str) else float(f"{m[name]:.5g}") for m in models] for name in models[0]
    }
    lines = (f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in columns.items())
    SAVED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lines", type=Path, nargs="?", help="file of lines to train into, or to pack")
    parser.add_argument("--pack", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.pack:
        pack(options.lines)
    elif options.lines:
        collect(options.lines)
    models = load()
    for early in (False, True):
        print(f"\nMarkers {'at a quarter of the training' if early else 'at the end'}:\n")
        print("\n".join(table(models, early=early)))


if __name__ == "__main__":
    main()
