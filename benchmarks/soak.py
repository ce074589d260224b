"""A soak: thousands of measurements of one run, whose time, memory and open files have to stay constant.

Run: ``OMP_NUM_THREADS=1 python -m benchmarks.soak`` (2,000 measurements of a small model, a few minutes on one core).
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm

CLASSES, WIDTH = 4, 16
WARM_UP = 20
"""Measurements that do not count: caches fill, and the detectors begin to judge."""


class Soak(NamedTuple):
    """First and last tenth of a run, after the warm-up."""

    seconds: tuple[float, float]
    """median processor time of a measurement"""
    megabytes: tuple[float, float]
    """resident memory at the end of the first tenth, and at the end"""
    handles: tuple[int, int]
    """open files at the same times"""
    records: int


def soak(measurements: int, directory: Path) -> Soak:
    """Measure a small model again and again, with a file, a panel and a state at every tenth measurement.

    On one thread: those of a pool that wait for a busy core also use processor time.

    Args:
        measurements: how many, from 100 on.
        directory: where the history goes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _soak(measurements, directory)
    finally:
        torch.set_num_threads(threads)


def _soak(measurements: int, directory: Path) -> Soak:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(160, 8), torch.arange(160) % CLASSES)
    model = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    probe = gm.ProbeSet.from_dataset([data[number] for number in range(160)], per_class=10)
    run = gm.MonitoredRun(gm.GeometryMonitor(probe, geometry={"directions": 20}, on_error="raise"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    tenth = measurements // 10
    seconds: list[float] = []
    states: list[tuple[float, int]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeometryDeclineWarning)
        run.start(model, directory)
        for step in range(1, WARM_UP + measurements + 1):
            x, y = data[torch.randint(160, (16,))]  # type: ignore[index]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            started = time.process_time()
            run.measure(model, step=step, epoch=step // 4, optimizers=[optimizer])
            seconds.append(time.process_time() - started)
            if step % 10 == 0:
                run.state_dict()
            if step in {WARM_UP + tenth, WARM_UP + measurements}:
                gc.collect()
                states.append((resident_megabytes(), open_handles()))
    counted = np.array(seconds[WARM_UP:])
    (before, open_before), (after, open_after) = states
    return Soak(
        (float(np.median(counted[:tenth])), float(np.median(counted[-tenth:]))),
        (before, after),
        (open_before, open_after),
        len(run.monitor.history),
    )


def resident_megabytes() -> float:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_handles() -> int:
    """Open file descriptors of this process (Linux)."""
    return len(os.listdir("/proc/self/fd"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measurements", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(arguments.measurements, Path(folder))
    before, after = found.seconds
    print(f"{arguments.measurements} measurements, {found.records} records")
    print(f"seconds a measurement: {before:.4f} -> {after:.4f} (x {after / before:.2f})")
    grown = found.megabytes[1] - found.megabytes[0]
    print(f"memory: {found.megabytes[0]:.1f} -> {found.megabytes[1]:.1f} MB (+ {grown:.1f})")
    print(f"of these, the records at 60 bytes each: {found.records * 60 / 1e6:.1f} MB")
    print(f"open files: {found.handles[0]} -> {found.handles[1]}")


if __name__ == "__main__":
    main()
