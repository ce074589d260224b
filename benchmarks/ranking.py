"""How often does ``geomonitor rank`` pick the better of two finished models for new classes? A study on two real tasks.

Small networks on MNIST and on scikit-learn's digits (``early_warning/tasks.py``), trained by two sweeps of recipes on
six of ten classes: SGD over learning rate, weight decay and dropout, and AdamW over learning rate, weight decay and
seed, as in the paper. Models of one sweep and one choice of classes are a group, in which any two are a pair.
For each pair whose transfer accuracy on the four other classes differs by more than two paired standard errors: which
of the two does each rule name? The probe set, the truth and the test accuracy are of disjoint points.

    nice -n 10 python -m benchmarks.ranking --output build/ranking       # a quarter of an hour on one core

Models are kept in the folder; a second call reads them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from benchmarks.early_warning.tasks import Network, Task, TaskName, build_network, load_task
from geomonitor.decide.rank import Candidate, compare_two, measure_candidate

TASKS: tuple[TaskName, ...] = ("mnist", "digits")
SPLITS = (100, 101)
"""Which classes are known, drawn anew: seeds that no other benchmark uses."""
EPOCHS, BATCH = 15, 32
PER_CLASS = 50
BOOTSTRAPS = 2_000


class Recipe(NamedTuple):
    """How a model is trained."""

    learning_rate: float
    weight_decay: float
    dropout: float
    seed: int


SWEEPS = {
    "sgd": [
        Recipe(*settings, seed)
        for seed, settings in enumerate(itertools.product((0.01, 0.03, 0.08), (0.0, 5e-3), (0.0, 0.3)))
    ],
    "adamw": [
        Recipe(rate, decay, 0.0, seed)
        for seed, (rate, decay, _) in enumerate(itertools.product((5e-4, 2e-3), (0.0, 0.1, 1.0), range(2)))
    ],
}
"""The second was added, and its settings were chosen, after the first had come out, and before any of it was run."""


def trained(task: Task, sweep: str, recipe: Recipe) -> Network:
    """A network after ``EPOCHS`` epochs of SGD with momentum, or of AdamW."""
    torch.manual_seed(recipe.seed)
    model = build_network(task.name, dropout=recipe.dropout)
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    parameters = model.parameters()
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, **options)
    if sweep == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, **options)
    inputs, labels = task.train
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(BATCH):
            loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def measured(task: Task, model: Network, name: str) -> tuple[Candidate, dict[str, float]]:
    """What ``rank`` measures, with the truth; and baselines that know the known classes only."""
    probe = gm.ProbeSet.from_dataset(task.probe, per_class=PER_CLASS)
    truth = gm.TransferProbe.from_dataset(TensorDataset(*task.unseen), per_class=100)
    monitor = gm.GeometryMonitor(
        probe, markers=["dimension", "utility", "accuracy", "rankme", "participation_ratio", "nc1"], panel=None,
        truth=truth, on_error="raise",
    )  # fmt: skip
    candidate = measure_candidate(monitor, model, name, task.name)
    with torch.no_grad():
        logits, labels = model(task.validation.inputs), task.validation.labels
    return candidate, {
        "test accuracy": float((logits.argmax(1) == labels).double().mean()),
        "test loss": -float(nn.functional.cross_entropy(logits, labels)),
    }


RULES: dict[str, Callable[[dict[str, float]], float]] = {
    "test accuracy": lambda row: row["test accuracy"],
    "test loss (lower)": lambda row: row["test loss"],
    "weight decay (lower)": lambda row: -row["weight_decay"],
    "learning rate (lower)": lambda row: -row["learning_rate"],
    "rankme": lambda row: row["rankme"],
    "participation ratio": lambda row: row["participation_ratio"],
    "nc1 (higher)": lambda row: row["nc1"],
    "utility": lambda row: row["utility"],
    "dimension, every pair": lambda row: row["dimension"],
}


def collect(folder: Path) -> list[tuple[str, Candidate, dict[str, float]]]:
    """All models of all groups: name of the group, what ``rank`` measures, and the figures of the baselines."""
    found = []
    for name, split, sweep in itertools.product(TASKS, SPLITS, SWEEPS):
        task, group = load_task(name, split), f"{name}-{split}-{sweep}"
        for recipe in SWEEPS[sweep]:
            file = folder / f"{group}-{recipe.seed}.pt"
            torch.manual_seed(recipe.seed)
            if file.exists():
                model = build_network(name, dropout=recipe.dropout)
                model.load_state_dict(torch.load(file, weights_only=True))
                model.eval()
            else:
                model = trained(task, sweep, recipe)
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.save(model.state_dict(), file)
            candidate, row = measured(task, model, file.stem)
            row |= recipe._asdict() | {marker: value for marker, (value, _) in candidate.values.items()}
            found.append((group, candidate, row))
            print(f"{file.stem}: transfer {row['transfer_accuracy']:.3f} dimension {row['dimension']:.2f}", flush=True)
    return found


def verdicts(models: list[tuple[str, Candidate, dict[str, float]]]) -> list[dict[str, Any]]:
    """For each pair with a clear truth: by rule 1 (right), 0 (wrong), 0.5 (equal), NaN (no call)."""
    pairs = []
    for (group, one, row), (other_group, other, other_row) in itertools.combinations(models, 2):
        if group != other_group:
            continue
        truth = compare_two(one, other, by_target=True)
        if truth.better is None:
            continue
        sign = 1 if truth.better == one.name else -1
        pair: dict[str, Any] = {"group": group, "models": (one.name, other.name)}
        for name, rule in RULES.items():
            pair[name] = 0.5 * (1 + sign * float(np.sign(rule(row) - rule(other_row))))
        call = compare_two(one, other)
        pair["rank"] = math.nan if call.better is None else float(call.better == truth.better)
        pairs.append(pair)
    return pairs


def share(pairs: list[dict[str, Any]], rule: str, models: list[str], draw: np.random.Generator) -> tuple[float, ...]:
    """Share of right calls, a 95 % interval by resampling models (pairs share them), and the share of pairs called."""
    values = np.array([pair[rule] for pair in pairs])
    index = {name: place for place, name in enumerate(models)}
    ends = np.array([[index[name] for name in pair["models"]] for pair in pairs])
    shares = []
    for _ in range(BOOTSTRAPS):
        count = np.bincount(draw.integers(len(models), size=len(models)), minlength=len(models))
        weights = count[ends].prod(1) * np.isfinite(values)
        shares.append(float((weights * np.nan_to_num(values)).sum() / weights.sum()) if weights.sum() else math.nan)
    low, high = np.nanpercentile(shares, [2.5, 97.5])
    return float(np.nanmean(values)), float(low), float(high), float(np.isfinite(values).mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/ranking"), help="folder of the models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = collect(options.output)
    pairs = verdicts(models)
    (options.output / "pairs.json").write_text(json.dumps(pairs))
    for sweep in SWEEPS:
        groups = [f"{name}-{split}-{sweep}" for name, split in itertools.product(TASKS, SPLITS)]
        report(sweep, groups, [m for m in models if m[0] in groups], [p for p in pairs if p["group"] in groups])


def report(
    sweep: str, groups: list[str], models: list[tuple[str, Candidate, dict[str, float]]], pairs: list[dict[str, Any]]
) -> None:
    """Print the table of a sweep."""
    every = sum(math.comb(sum(name == group for name, *_ in models), 2) for group in groups)
    print(f"\n{sweep}: {len(models)} models, {len(pairs)} of {every} pairs with a clear truth\n")
    print(f"| rule | right, 95 % interval | pairs called | {' | '.join(groups)} |\n|---|---|---|{'---|' * len(groups)}")
    for rule in ("rank", *RULES):
        value, low, high, called = share(pairs, rule, [c.name for _, c, _ in models], np.random.default_rng(0))
        by_group = [[p[rule] for p in pairs if p["group"] == group] for group in groups]
        cells = [f"{np.nanmean(own):.0%}" if np.isfinite(own).any() else "-" for own in by_group]
        print(f"| {rule} | {value:.0%} ({low:.0%}-{high:.0%}) | {called:.0%} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
