"""Speed against the loop, one row per case. Run: ``OMP_NUM_THREADS=1 python -m tests.benchmarks.speed [case
...]``.
"""

from __future__ import annotations

import statistics
import sys
from time import perf_counter

import torch

from geomonitor.markers.manifolds import manifold_geometry
from tests.benchmarks.cases import CASES, Case
from tests.benchmarks.loop import loop_seconds

DIRECTIONS = 200
# Samples of the loop that are timed (its time is linear in their number), and repeats of each side.
LOOP_SAMPLES = {"C": 8, "D": 3, "E": 400, "F": 2}
REPEATS = {"C": 3, "D": 1, "E": 3, "F": 1}
HEADER = (
    "| case | loop | geomonitor | ratio | at least | KKT residual | converged |\n|---|---:|---:|---:|---:|---:|---|"
)


def row(case: Case) -> str:
    features, labels = case.make()
    mode = "joint" if case.pairs is None else "pairwise"
    repeats = REPEATS.get(case.name, 5)
    loops, ours = [], []
    for _ in range(repeats):  # by turns, so that a busy machine slows both
        loops.append(
            loop_seconds(
                features,
                labels,
                directions=DIRECTIONS,
                samples=LOOP_SAMPLES.get(case.name, DIRECTIONS if repeats < 2 else 60),
                pairs=case.pairs,
            )
        )
        start = perf_counter()
        result = manifold_geometry(
            features, labels, directions=DIRECTIONS, mode=mode, pairs=case.pairs, dichotomies="balanced"
        )
        ours.append(perf_counter() - start)
    loop, own = statistics.median(loops), statistics.median(ours)
    return (
        f"| {case.name}: {case.title} | {loop:.3g} s | {own:.3g} s | {loop / own:.1f} | {case.at_least:g} "
        f"| {float(result.max_kkt_residual):.0e} | {'yes' if bool(result.converged) else 'no'} |"
    )


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    features, labels = CASES[0].make()
    manifold_geometry(features, labels, directions=20)  # first calls load libraries
    print(HEADER)
    for case in CASES:
        if not names or case.name in names:
            print(row(case), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
