"""Peak memory and time of the largest cases. Run: ``python -m tests.benchmarks.memory [imagenet joint
repeat]``.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from time import perf_counter

import torch

from geomonitor.markers.manifolds import manifold_geometry
from tests.benchmarks.cases import trained

MIB = 1 << 20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def clouds(classes: int, points: int, dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 features with the correlations of a deep layer: positive, with a common mean."""
    stream = torch.Generator().manual_seed(0)
    features = torch.randn(classes, 1, dimension, generator=stream) + torch.zeros(1, points, 1)
    features += 0.5 * torch.randn(classes, points, dimension, generator=stream)
    return features.relu_().flatten(0, 1), torch.arange(classes).repeat_interleave(points)


def measure(name: str) -> str:
    torch.set_num_threads(2)
    features, labels = {"imagenet": lambda: clouds(1000, 50, 2048), "joint": lambda: clouds(200, 50, 512)}[name]()
    manifold_geometry(features[:100], labels[:100], directions=5)
    start = perf_counter()
    mode = "pairwise" if name == "imagenet" else "joint"
    result = manifold_geometry(features, labels, mode=mode, pairs=500 if name == "imagenet" else None)
    seconds = perf_counter() - start
    return (
        f"| {name} | {features.numel() * 4 / MIB:.0f} MiB | {peak_mib():.0f} MiB | {seconds:.1f} s "
        f"| {float(result.max_kkt_residual):.0e} | {'yes' if bool(result.converged) else 'no'} |"
    )


def growth(calls: int = 50) -> str:
    """Growth of the peak over many calls, after five."""
    features, labels = trained(100, 50, 512, steps=200, inputs=256)
    peaks = []
    for _ in range(calls):
        manifold_geometry(features, labels, directions=10)
        peaks.append(peak_mib())
    return f"peak after 5 calls {peaks[4]:.0f} MiB, after {calls} calls {peaks[-1]:.0f} MiB"


def main(names: list[str]) -> None:
    if len(names) == 1:
        print(growth() if names[0] == "repeat" else measure(names[0]))
        return
    print("| case | features | peak of the whole process | time | KKT residual | converged |")
    print("|---|---:|---:|---:|---:|---|")
    for name in names or ["imagenet", "joint", "repeat"]:  # a process each
        print(
            subprocess.run([sys.executable, "-m", __spec__.name, name], check=True, capture_output=True).stdout.decode()
        )


if __name__ == "__main__":
    main(sys.argv[1:])
