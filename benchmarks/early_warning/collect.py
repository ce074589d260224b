"""Train the runs and add them to the files; runs that are already there are skipped.

OMP_NUM_THREADS=1 python -m benchmarks.early_warning.collect                     # six hours
... --family forgetting --task mnist --seeds 0:4                                       # a part of them
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.early_warning.families import FAMILIES, HEALTHY, HEALTHY_SEEDS, SEEDS, recipe
from benchmarks.early_warning.tasks import TASKS, fingerprint
from benchmarks.early_warning.training import run_finely
from benchmarks.early_warning.trajectories import CHECKS, FOLDER, RUNS, WITHIN, add_run, cached_runs


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", help="first:after the last; by default those that are in the repository")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the files")
    parser.add_argument("--within-epochs", action="store_true", help=f"also measure often, into {WITHIN}")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path, within = options.output / RUNS, options.output / WITHIN
    torch.set_num_threads(1)
    first, end = map(int, (options.seeds or f"0:{SEEDS}").split(":"))
    print("data:", {task: fingerprint(task) for task in options.task}, flush=True)
    for seed in range(first, end):  # all families of a seed first: a collection that is cut short is balanced
        for family in options.family:
            if not options.seeds and family in HEALTHY and seed >= HEALTHY_SEEDS:
                continue
            for task in options.task:
                of_run = recipe(family, task, seed)
                missing = (family, task, seed) not in cached_runs(path)
                missing_within = options.within_epochs and (family, task, seed) not in cached_runs(within)
                if not missing and not missing_within:
                    continue
                started = time.process_time()
                rows = list(run_finely(of_run, checks=CHECKS if missing_within else 0))
                if missing_within:
                    add_run(within, of_run, [row for row, _ in rows])
                if missing:
                    add_run(path, of_run, [row for _, row in rows if row is not None])
                print(f"{family} {task} {seed}: {time.process_time() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
