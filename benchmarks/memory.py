"""Memory and time of the largest cases: ``python -m benchmarks.memory [imagenet joint repeat]``.

A process each. ``repeat`` measures case D (P=100, M=50) again and again, and fails if its memory grows.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time

import torch

from benchmarks.cases import trained
from geomonitor.glue.manifolds import manifold_geometry

MIB = 1 << 20
CALLS, SETTLED = 50, 5
# The allocator keeps and returns pages as it likes. A leak of one array of Q numbers a call would be 2 MiB over 50
# calls, one of the features 1,000 MiB.
MOST_GROWTH_MIB = 20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    """Resident memory of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / MIB


def clouds(classes: int, points: int, dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 features with the correlations of a deep layer: positive, with a common mean."""
    stream = torch.Generator().manual_seed(0)
    features = torch.randn(classes, 1, dimension, generator=stream) + torch.zeros(1, points, 1)
    features += 0.5 * torch.randn(classes, points, dimension, generator=stream)
    return features.relu_().flatten(0, 1), torch.arange(classes).repeat_interleave(points)


def measure(name: str) -> str:
    torch.set_num_threads(2)
    features, labels = {"imagenet": lambda: clouds(1000, 50, 2048), "joint": lambda: clouds(200, 50, 2048)}[name]()
    manifold_geometry(features[:100], labels[:100], directions=5)
    before, start, processor = resident_mib(), perf_counter(), process_time()
    mode = "pairwise" if name == "imagenet" else "joint"
    result = manifold_geometry(features, labels, mode=mode, pairs=500 if name == "imagenet" else None)
    return (
        f"| {name} | {features.numel() * 4 / MIB:.0f} MiB | {before:.0f} MiB | {peak_mib():.0f} MiB "
        f"| {perf_counter() - start:.1f} s | {process_time() - processor:.1f} s "
        f"| {float(result.max_kkt_residual):.0e} | {'yes' if bool(result.converged) else 'no'} |"
    )


def growth() -> str:
    """Resident memory after every tenth call, and what it grew by after the first few."""
    torch.set_num_threads(1)
    features, labels = trained(100, 50, 512, steps=200, inputs=256)
    resident = []
    for _ in range(CALLS):
        manifold_geometry(features, labels, directions=10)
        resident.append(resident_mib())
    shown = ", ".join(f"{value:.0f}" for value in resident[SETTLED - 1 :: 5])
    grown = max(resident[-SETTLED:]) - max(resident[:SETTLED])
    text = f"resident MiB after calls {SETTLED}, 10, ...: {shown}; grown by {grown:.1f} MiB, peak {peak_mib():.0f} MiB"
    if grown > MOST_GROWTH_MIB:
        raise SystemExit(f"memory grows: {text}")
    return text


def main(names: list[str]) -> None:
    if len(names) == 1:
        print(growth() if names[0] == "repeat" else measure(names[0]))
        return
    print("| case | features | resident before | peak | wall time | processor time | KKT residual | converged |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for name in names or ["imagenet", "joint", "repeat"]:  # a process each
        command = [sys.executable, "-m", __spec__.name, name]
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode(), end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
