"""Healthy runs whose learning rate restarts twice: false alarms of the default. No part of the calibration.

OMP_NUM_THREADS=1 python -m benchmarks.early_warning.restarts      # minutes; trains eighteen runs
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from benchmarks.early_warning.families import recipe
from benchmarks.early_warning.report import shipped
from benchmarks.early_warning.tasks import TASKS
from benchmarks.early_warning.training import run
from benchmarks.early_warning.trajectories import Run

SEEDS = range(100, 106)


def main() -> None:
    """Prints the epoch of the first alarm in each run."""
    torch.set_num_threads(1)
    default, alarms = shipped(), []
    for seed in SEEDS:
        for task in TASKS:
            of_run = dataclasses.replace(recipe("adamw" if task == "bytes" else "sgd", task, seed), schedule="restarts")
            rows = list(run(of_run))
            columns = {name: np.array([row.get(name, math.nan) for row in rows]) for name in rows[0]}
            alarms.append(default.first_alarm(Run("restarts", task, seed, True, None, math.nan, "", columns)))
            print(f"{task} {seed}: {'no alarm' if alarms[-1] is None else f'alarm at epoch {alarms[-1]}'}", flush=True)
    print(f"{sum(alarm is not None for alarm in alarms)} of {len(alarms)} runs have an alarm")


if __name__ == "__main__":
    main()
