"""Speed against two loops, one row per case: ``OMP_NUM_THREADS=1 python -m benchmarks.speed [case ...]``.

Processor time of this thread is taken, so that other work on the machine counts little; the sides take turns. With
``--plain`` the compiled loops are left out, as where numba is not installed.
"""

from __future__ import annotations

import statistics
import sys
from time import process_time
from unittest import mock

import torch

from benchmarks.cases import CASES, Case
from benchmarks.loop import by_fnnls, loop_seconds
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.nnls import solve as solvers

DIRECTIONS = 200
# The saturated case takes most of a second a sample, so that fixed costs do not matter: fewer directions on both sides.
FEWER_DIRECTIONS = {"F": 20}
# Samples of the loop that are timed (its time is linear in their number), and repeats of each side.
LOOP_SAMPLES = {"C": 8, "D": 3, "E": 400, "F": 2}
REPEATS = {"C": 3, "D": 1, "E": 3, "F": 1}
HEADER = (
    "| case | loop, `nnls` | loop, FNNLS | geomonitor | ratio | ratio, FNNLS | at least | KKT residual | converged |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---|"
)


def row(case: Case) -> str:
    features, labels = case.make()
    mode = "joint" if case.pairs is None else "pairwise"
    directions = FEWER_DIRECTIONS.get(case.name, DIRECTIONS)
    loops, gram_loops, ours = [], [], []
    for _ in range(REPEATS.get(case.name, 5)):  # by turns, so that a busy machine slows both
        samples = LOOP_SAMPLES.get(case.name, 60)
        options = {"directions": directions, "samples": samples, "pairs": case.pairs}
        loops.append(loop_seconds(features, labels, **options))
        gram_loops.append(loop_seconds(features, labels, **options, solver=by_fnnls))
        start = process_time()
        result = manifold_geometry(features, labels, directions=directions, mode=mode, pairs=case.pairs)
        ours.append(process_time() - start)
    loop, gram_loop, own = map(statistics.median, (loops, gram_loops, ours))
    return (
        f"| {case.name}: {case.title} | {loop:.3g} s | {gram_loop:.3g} s | {own:.3g} s "
        f"| {loop / own:.1f} | {gram_loop / own:.1f} | {case.at_least:g} "
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
    if "--plain" in sys.argv:
        with mock.patch.object(solvers, "suits", return_value=False):
            main([name for name in sys.argv[1:] if name != "--plain"])
    else:
        main(sys.argv[1:])
