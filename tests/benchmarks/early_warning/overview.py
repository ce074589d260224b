"""What the runs show, as a Markdown table: whether the truth fell, and what the geometry did.

    python -m tests.benchmarks.early_warning.overview

Each cell is ``before -> at the end``: medians over the runs of a family on a task. "Before" is the median of the three
epochs before the onset (in healthy runs of epochs 5-7), "at the end" of the last three.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from tests.benchmarks.early_warning.families import FAMILIES
from tests.benchmarks.early_warning.tasks import TASKS
from tests.benchmarks.early_warning.trajectories import Run, load_runs

COLUMNS = {
    "unseen_accuracy": "linear probe, new classes",
    "unseen_few_shot_accuracy": "few shots, new classes",
    "noise_accuracy": "noise",
    "val_accuracy": "validation",
    "dimension": "dimension",
    "utility": "utility",
    "participation_ratio": "participation ratio",
    "rankme": "RankMe",
    "nc1": "NC1",
    "dead_units": "dead units",
}
MIDDLE = 8


def change(run: Run, name: str) -> tuple[float, float]:
    """A column before the onset and at the end."""
    onset = MIDDLE if run.onset is None else max(1, run.onset)
    values = run.columns[name]
    return float(np.median(values[max(0, onset - 3) : onset])), float(np.median(values[-3:]))


def _row(family: str, task: str, runs: Sequence[Run]) -> str:
    falls = [change(run, "unseen_accuracy") for run in runs]
    fallen = sum(after < before - 0.02 for before, after in falls)
    cells = [family, task, f"{fallen} of {len(runs)}"]
    for name in COLUMNS:
        before, after = np.nanmedian([change(run, name) for run in runs], axis=0)
        cells.append(f"{before:.3g} -> {after:.3g}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    print(f"| family | task | probe fell by > .02 | {' | '.join(COLUMNS.values())} |")
    print("|" + "---|" * (3 + len(COLUMNS)))
    runs = sorted(load_runs(), key=lambda run: (FAMILIES.index(run.family), TASKS.index(run.task)))  # type: ignore[arg-type]
    for (family, task), of in groupby(runs, lambda run: (run.family, run.task)):
        print(_row(family, task, list(of)))


if __name__ == "__main__":
    main()
