"""Across finished models of one task and width: which markers go with transfer to new classes, at the end and early.

python -m benchmarks.elsewhere.finished          # rank correlations with 95 % intervals, from the cached runs; seconds

Models: the runs of all families in which nothing breaks (nothing changes, or a planned change), 40 to 416 of a task;
all of a task have the same layers and widths. Truth: accuracy on new classes at the end of the run, once as it is, and
once less that at the first measurement: each run has its own choice of classes, which makes most of the differences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.early_warning.families import HEALTHY
from benchmarks.elsewhere.recipes import PLAIN, PLANNED
from benchmarks.elsewhere.report import all_runs
from benchmarks.elsewhere.runs import LATER, Run, load

MARKERS = (
    "dimension",
    "utility",
    "capacity",
    "numerical_rank",
    "rankme",
    "participation_ratio",
    "cdnv",
    "nc1",
    "val_accuracy",
)
BOOTSTRAPS = 1_000
LAST = 3
"""The end of a run is the mean of its last three measurements."""


def finished(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs in which nothing breaks, by task."""
    kept: dict[str, list[Run]] = {}
    for run in runs:
        if run.family in (HEALTHY if "plateau" not in run.columns else (*PLAIN, *PLANNED)):
            kept.setdefault(run.task, []).append(run)
    return kept


def at_end(values: NDArray[np.float64]) -> float:
    """The mean over the last measurements."""
    return float(np.mean(values[-LAST:]))


def at_a_quarter(values: NDArray[np.float64]) -> float:
    """The mean over three measurements up to a quarter of the run."""
    quarter = max(LAST, len(values) // 4)
    return float(np.mean(values[quarter - LAST : quarter]))


def correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """Spearman's rank correlation with a 95 % interval by resampling models; NaN if fewer than ten are known.

    >>> correlation(np.arange(20.0), np.arange(20.0) ** 3)
    (1.0, 1.0, 1.0)
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 10 or np.ptp(x) == 0:
        return (np.nan, np.nan, np.nan)
    draw = np.random.default_rng(0)
    chosen = draw.integers(len(x), size=(BOOTSTRAPS, len(x)))
    samples = [_spearman(x[c], y[c]) for c in chosen]
    low, high = np.nanquantile(samples, (0.025, 0.975))
    return round(_spearman(x, y), 2), round(float(low), 2), round(float(high), 2)


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    x, y = rankdata(x), rankdata(y)
    spread = float(np.std(x) * np.std(y))
    return float(np.mean((x - x.mean()) * (y - y.mean()))) / spread if spread else np.nan


def table(runs: list[Run], *, gain: bool, early: bool) -> list[str]:
    """Rows of a table: a task, its number of models, and a column for each marker."""
    rows = []
    for task, kept in sorted(finished(runs).items()):
        truth = np.array([at_end(r.columns["unseen_accuracy"]) for r in kept])
        if gain:
            truth -= np.array([r.columns["unseen_accuracy"][0] for r in kept])
        cells = []
        for name in MARKERS:
            take = at_a_quarter if early else at_end
            values = np.array([take(r.columns[name]) if name in r.columns else np.nan for r in kept])
            rho, low, high = correlation(values, truth)
            cells.append("-" if np.isnan(rho) else f"{rho:+.2f} ({low:+.2f} to {high:+.2f})")
        rows.append(f"| {task} | {len(kept)} | " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    """Print the tables."""
    runs = [*all_runs(), *load(LATER)]
    for gain, early in ((False, False), (True, False), (True, True)):
        print(f"\n{'gain since the first measurement' if gain else 'accuracy'} on new classes, markers "
              f"{'at a quarter of the run' if early else 'at the end'}:\n")  # fmt: skip
        print("| task | models | " + " | ".join(MARKERS) + " |\n|" + "---|" * (2 + len(MARKERS)))
        print("\n".join(table(runs, gain=gain, early=early)))


if __name__ == "__main__":
    main()
