"""One process against two (gloo, one thread each): ``OMP_NUM_THREADS=1 python -m benchmarks.two_processes``.

Both sizes take turns, and medians are compared. Wall time says what a user waits, and needs two free cores to mean
anything; processor time of the slower rank says how evenly the work was split, and what is done twice.
"""

from __future__ import annotations

import statistics
from time import perf_counter, process_time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.cases import collapsed, trained
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.ranks import ProcessGroup
from geomonitor.glue.result import EffectiveGeometry

REPEATS = 7
JOINT, PAIRWISE = "joint: P=20, M=50, N=512, T=400, untrained", "pairwise: 100 pairs, M=50, N=2048"


def work(rank: int, size: int, store: str, results: mp.SimpleQueue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    cases = {
        JOINT: (trained(20, 50, 512, steps=0), {"directions": 400}),
        PAIRWISE: (collapsed(20, 50, 2048, noise=1.0), {"mode": "pairwise", "pairs": 100}),
    }
    for name, ((features, labels), options) in cases.items():

        def call(ranks: ProcessGroup | None) -> EffectiveGeometry:
            return manifold_geometry(features, labels, ranks=ranks, **options)  # noqa: B023

        call(None)
        alone, together = [], []
        for _ in range(REPEATS):
            if rank == 0:
                alone.append(timed(lambda: call(None)))
            dist.barrier()
            together.append(timed(lambda: call(ProcessGroup())))
            dist.barrier()
        processor = torch.tensor([statistics.median(cpu for _, cpu in together)], dtype=torch.float64)
        dist.all_reduce(processor, op=dist.ReduceOp.MAX)
        one, two = call(None), call(ProcessGroup())
        if rank == 0:
            walls = [statistics.median(wall for wall, _ in times) for times in (alone, together)]
            own = statistics.median(cpu for _, cpu in alone)
            difference = (torch.stack(one.measures) - torch.stack(two.measures)).abs().max()
            results.put((name, *walls, own, float(processor), float(difference)))
    dist.destroy_process_group()


def timed(call) -> tuple[float, float]:
    wall, cpu = perf_counter(), process_time()
    call()
    return perf_counter() - wall, process_time() - cpu


def main() -> None:
    import tempfile

    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, args=(2, f"{folder}/store", results), nprocs=2, start_method="spawn")
    print("| case | wall, one | wall, two | ratio | processor, one | processor, slower of two | ratio | difference |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    while not results.empty():
        name, wall, wall_two, cpu, cpu_two, difference = results.get()
        print(
            f"| {name} | {wall:.3f} s | {wall_two:.3f} s | {wall_two / wall:.2f} "
            f"| {cpu:.3f} s | {cpu_two:.3f} s | {cpu_two / cpu:.2f} | {difference:.0e} |"
        )


if __name__ == "__main__":
    main()
