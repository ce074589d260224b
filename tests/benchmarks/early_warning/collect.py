"""Train the runs and write their trajectories; runs that are there already are skipped.

OMP_NUM_THREADS=1 python -m tests.benchmarks.early_warning.collect                     # three hours
... --family forgetting --task mnist --seeds 0:4                                       # a part of them
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from tests.benchmarks.early_warning.families import FAMILIES, SEEDS, recipe
from tests.benchmarks.early_warning.tasks import TASKS, fingerprint
from tests.benchmarks.early_warning.training import run
from tests.benchmarks.early_warning.trajectories import FOLDER, add_run, cached_seeds, path_of


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", default=f"0:{SEEDS}", help="first:after the last")
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, end = map(int, options.seeds.split(":"))
    print("data:", {task: fingerprint(task) for task in options.task}, flush=True)
    for seed in range(first, end):  # all families of a seed first: a collection that is cut short is balanced
        for family in options.family:
            for task in options.task:
                of_run = recipe(family, task, seed)
                path = path_of(of_run, options.output)
                if seed in cached_seeds(path):
                    continue
                started = time.process_time()
                add_run(path, of_run, run(of_run))
                print(f"{family} {task} {seed}: {time.process_time() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
