"""How the time grows with Q, T, P and N: fitted exponents, a table and ``docs/scaling.png``.

``OMP_NUM_THREADS=1 python -m benchmarks.scaling [picture]``. One size is changed at a time; the time is the
processor time of one thread for a whole call, the least of a few, and the exponent is the slope of a straight line
through the logarithms.
"""

from __future__ import annotations

import sys
from time import process_time

import matplotlib as mpl
import numpy as np
import torch

from benchmarks.cases import Features
from geomonitor.glue.manifolds import manifold_geometry

START = {"P": 10, "M": 50, "N": 512, "T": 200}
SIZES = {
    "Q (by M)": ("M", [25, 50, 100, 200, 400]),
    "P (Q = 1,000)": ("P", [2, 5, 10, 20, 50]),
    "N": ("N", [256, 512, 1024, 2048, 4096]),
    "T": ("T", [100, 200, 400, 800, 1600]),
}
POINTS = 1000
REPEATS = 3


def features(classes: int, points: int, dimension: int) -> Features:
    """ReLU features with a common mean and noise in a fixed number of directions, whatever the sizes are."""
    stream = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, 1, dimension, generator=stream)
    axes = torch.randn(20, dimension, generator=stream)
    noise = torch.randn(classes, points, 20, generator=stream) @ axes / 20**0.5
    small = 0.1 * torch.randn(classes, points, dimension, generator=stream)
    return (centers + noise + small).relu().flatten(0, 1), torch.arange(classes).repeat_interleave(points)


def seconds(sizes: dict[str, int]) -> float:
    z, labels = features(sizes["P"], sizes["M"], sizes["N"])
    times = []
    for _ in range(REPEATS):
        start = process_time()
        manifold_geometry(z, labels, directions=sizes["T"])
        times.append(process_time() - start)
    return min(times)


def measure() -> dict[str, tuple[list[int], list[float]]]:
    found = {}
    for title, (name, values) in SIZES.items():
        times = []
        for value in values:
            sizes = {**START, name: value}
            if name == "P":
                sizes["M"] = POINTS // value
            times.append(seconds(sizes))
        shown = [value * START["P"] for value in values] if name == "M" else values
        found[title] = shown, times
    return found


def exponent(sizes: list[int], times: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def picture(found: dict[str, tuple[list[int], list[float]]], path: str) -> None:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(12, 3), sharey=True, layout="constrained")
    for axis, (title, (sizes, times)) in zip(axes, found.items(), strict=True):
        axis.loglog(sizes, times, "o-")
        axis.set(xlabel=title, title=f"exponent {exponent(sizes, times):.2f}")
        axis.set_xticks(sizes, labels=[f"{size:,}" for size in sizes], fontsize=8)
        axis.minorticks_off()
    axes[0].set_yticks([0.05, 0.1, 0.2, 0.5, 1], labels=["0.05", "0.1", "0.2", "0.5", "1"])
    axes[0].set_ylabel("seconds, one thread")
    figure.savefig(path, dpi=120)


def main(path: str | None) -> None:
    torch.set_num_threads(1)
    seconds(START)  # first calls load libraries
    found = measure()
    print("| size | values | seconds | exponent |\n|---|---|---|---:|")
    for title, (sizes, times) in found.items():
        listed = ", ".join(f"{time:.3g}" for time in times)
        print(f"| {title} | {', '.join(map(str, sizes))} | {listed} | {exponent(sizes, times):.2f} |")
    if path:
        picture(found, path)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
