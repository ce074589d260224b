"""The model that a user ends up with: without a monitor, with early stopping, with GeometryCheckpoint; docs/ranking.md.

OMP_NUM_THREADS=1 python -m benchmarks.elsewhere.endings           # prints the tables; half a minute

Nothing is trained: the cached runs hold the truth, accuracy on new classes, at each measurement, and so for each model
that a policy can end with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_warning.families import HEALTHY
from benchmarks.elsewhere.harm import harm_of
from benchmarks.elsewhere.recipes import PLAIN
from benchmarks.elsewhere.report import all_runs, fresh_runs, verdicts
from benchmarks.elsewhere.runs import LATER, Run, load
from geomonitor import Panel
from geomonitor.alarms.panel import DEFAULT_WATCH
from geomonitor.alarms.verdict import Verdict
from geomonitor.decide.keeper import declining_since

PATIENCE = 3
"""Lightning's default."""
RESAMPLES = 2_000
POLICIES = {
    "best_loss": "best checkpoint by val_loss, nothing stops the run",
    "val_loss": f"EarlyStopping on val_loss, patience {PATIENCE}, best checkpoint",
    "val_accuracy": f"EarlyStopping on val_accuracy, patience {PATIENCE}, best checkpoint",
    "stop": "GeometryCheckpoint, stopped at the alarm",
    "restore": "GeometryCheckpoint, restored at the end of the run",
    "both": "stopped at the alarm, best checkpoint by val_loss from before the decline",
}


class Ending(NamedTuple):
    """How the policies end in one run."""

    run: Run
    harmed: bool
    healthy: bool
    """a family in which nothing goes wrong and nothing changes"""
    kept: dict[str, int]
    """measurement whose model is kept, by policy"""

    def gain(self, policy: str) -> float:
        """Accuracy on new classes, less that of the last model of the run."""
        truth = self.run.columns["unseen_accuracy"]
        return float(truth[self.kept[policy]] - truth[-1])


def ending(run: Run) -> Ending:
    """Replay all policies on one run."""
    columns = run.columns
    judged = list(verdicts(run, Panel().resolve(DEFAULT_WATCH)))
    losses = columns["val_loss"]
    healthy = geometry_checkpoint(judged, stop=True)
    kept = {
        "best_loss": lowest(losses),
        "val_loss": early_stopping(losses),
        "val_accuracy": early_stopping(-columns["val_accuracy"]),
        "stop": healthy,
        "restore": geometry_checkpoint(judged, stop=False),
        "both": lowest(losses[: healthy + 1]),
    }
    return Ending(run, harm_of(columns) is not None, run.family in (*HEALTHY, *PLAIN), kept)


def lowest(values: NDArray[np.float64]) -> int:
    """Measurement of the lowest value; the last one if none is finite.

    >>> lowest(np.array([1.0, 0.8, np.nan, 0.8]))
    1
    """
    return int(np.nanargmin(values)) if np.isfinite(values).any() else len(values) - 1


def early_stopping(values: NDArray[np.float64]) -> int:
    """Measurement of the best checkpoint when Lightning's ``EarlyStopping`` has stopped; lower is better.

    >>> early_stopping(np.array([1.0, 0.8, 0.9, 0.85, 0.8, 0.1]))
    1
    """
    best = 0
    for check, value in enumerate(values.tolist()):
        if value < values[best]:
            best = check
        elif not math.isfinite(value) or check - best >= PATIENCE:
            break
    return best


def geometry_checkpoint(judged: Iterable[tuple[int, Verdict]], *, stop: bool) -> int:
    """Measurement whose model is kept by :class:`geomonitor.decide.keeper.CheckpointKeeper` with ``restore=True``.

    Args:
        judged: step and verdict of each measurement, of which the even ones are saved.
        stop: end the run at the first alarm.
    """
    healthy, since, step = -1, None, 0
    for step, verdict in judged:
        since = declining_since([verdict], step, pending=False)
        if declining_since([verdict], step, pending=True) is None:
            healthy = step
        if stop and verdict.declined:
            break
    kept = healthy // 2
    return kept if since is not None and 0 <= 2 * kept < since else step // 2


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean, by resampling runs."""
    own = np.array(values)
    draw = np.random.default_rng(0)
    means = [own[draw.integers(len(own), size=len(own))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def points(values: Sequence[float]) -> str:
    """A mean of differences in percentage points, with its interval."""
    if not values:
        return "-"
    low, high = interval(values)
    return f"{100 * float(np.mean(values)):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def table(endings: Sequence[Ending]) -> list[str]:
    """Rows by policy: runs with harm, without it, healthy families; and what a false alarm costs."""
    parts: dict[str, Callable[[Ending], bool]] = {
        "harmed": lambda e: e.harmed,
        "without harm": lambda e: not e.harmed,
        "healthy families": lambda e: e.healthy,
        "all": lambda e: True,
    }
    counts = [f"{name} ({sum(map(part, endings))})" for name, part in parts.items()]
    lines = ["| | " + " | ".join([*counts, "other model kept, of those without harm"]) + " |", "|" + "---|" * 6]
    for policy, title in POLICIES.items():
        cells = [points([e.gain(policy) for e in endings if part(e)]) for part in parts.values()]
        fine = [e for e in endings if not e.harmed]
        other = [e.gain(policy) for e in fine if e.kept[policy] < len(e.run.columns["unseen_accuracy"]) - 1]
        cost = f"{len(other)}: {points(other)}"
        lines.append("| " + " | ".join([title, *cells, cost]) + " |")
    return lines


def task_table(endings: Sequence[Ending]) -> list[str]:
    """Mean difference by task, for all runs of it and for the harmed ones."""
    lines = ["| task | runs | harmed | " + " | ".join(f"{p}, harmed | {p}, without harm" for p in POLICIES) + " |"]
    lines.append("|" + "---|" * (3 + 2 * len(POLICIES)))
    for task in sorted({e.run.task for e in endings}):
        own = [e for e in endings if e.run.task == task]
        cells = [points([e.gain(p) for e in own if e.harmed is harmed]) for p in POLICIES for harmed in (True, False)]
        lines.append("| " + " | ".join([task, str(len(own)), str(sum(e.harmed for e in own)), *cells]) + " |")
    return lines


def main() -> None:
    """Print the tables."""
    with ProcessPoolExecutor() as pool:
        endings = list(pool.map(ending, [*all_runs(), *load(LATER)], chunksize=32))
        fresh = list(pool.map(ending, fresh_runs(), chunksize=8))
    new = [e for e in endings if "plateau" in e.run.columns]
    titled = (("New seeds of all nine tasks", fresh), ("All nine tasks", endings), ("The six newer tasks", new))
    for title, part in titled:
        print(f"{title}:\n\n" + "\n".join(table(part)) + "\n")
    print("\n".join(task_table(endings)))


if __name__ == "__main__":
    main()
