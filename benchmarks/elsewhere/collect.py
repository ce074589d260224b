"""Train the runs, one line of JSON each; runs that are already there are skipped. See README.md for what it needs.

OMP_NUM_THREADS=1 python -m benchmarks.elsewhere.collect runs.jsonl [--task minilm ...]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks.elsewhere.recipes import FAMILIES, SEEDS, recipe
from benchmarks.elsewhere.tasks import TASKS
from benchmarks.elsewhere.training import run


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--seeds", help="first:after the last; by default those that are in the repository")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = set()
    if options.output.exists():
        for line in options.output.read_text(encoding="utf-8").splitlines():
            saved = json.loads(line)
            done.add((saved["family"], saved["task"], saved["seed"]))
    first, end = map(int, (options.seeds or f"0:{max(SEEDS.values())}").split(":"))
    for seed in range(first, end):  # all families of a seed first: a collection that is cut short is balanced
        for family in options.family:
            for task in options.task:
                if (not options.seeds and seed >= SEEDS[family]) or (family, task, seed) in done:
                    continue
                of_run = recipe(family, task, seed)
                started = time.process_time()
                rows = list(run(of_run))
                line = {"family": family, "task": task, "seed": seed, "onset": of_run.onset, "size": of_run.size}
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line | {"columns": {k: [row[k] for row in rows] for k in rows[0]}}) + "\n")
                print(f"{family} {task} {seed}: {time.process_time() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
