"""All ten measures against the literal definition with `nnls`, on every case of the speed table at full size.

``OMP_NUM_THREADS=1 python -m benchmarks.exactness [case ...]``. Features have their full size; where one `nnls`
takes seconds, fewer directions are taken (both sides the same ones). Where a direction lies inside the cone of the
points (``a = |t|^2``), many weights are optimal, `nnls` returns one of them and we the smallest: then capacity alone is
compared.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor

from benchmarks.cases import CASES, Case
from geomonitor.glue.draws import draw_dichotomies, draw_directions, draw_pairs
from geomonitor.glue.manifolds import manifold_geometry
from tests.glue.nnls_reference import MEASURES, reference_geometry

DIRECTIONS = {"C": 20, "D": 6, "E": 20, "F": 3}
# Class pairs of case E; the literal definition is computed for each on its own.
PAIRS = 20
INSIDE = 1e-9


def differences(case: Case) -> tuple[Tensor, int, float]:
    """Absolute difference of every measure (or of the capacity alone), number of directions, largest KKT residual."""
    features, labels = case.make()
    count = DIRECTIONS.get(case.name, 200)
    pairs = None if case.pairs is None else PAIRS
    mode = "joint" if pairs is None else "pairwise"
    found = manifold_geometry(features, labels, directions=count, mode=mode, pairs=pairs)
    classes = int(labels.max()) + 1
    t = draw_directions(count, features.shape[1], seed=0)
    y = draw_dichotomies(count, classes if pairs is None else 2, "balanced", seed=0)
    groups = [range(classes)] if pairs is None else draw_pairs(classes, pairs, seed=0).tolist()
    expected = []
    for group in groups:
        own = torch.isin(labels, torch.tensor(list(group)))
        reference = reference_geometry(features[own], labels[own], t, y)
        expected.append(torch.tensor([reference[name] for name in MEASURES], dtype=torch.float64))
    difference = (torch.stack(found.measures) - torch.stack(expected).mean(dim=0)).abs()
    inside = bool((found.samples.a > (1 - INSIDE) * t.square().sum(dim=1)).any())
    return difference[:1] if inside else difference, count, float(found.max_kkt_residual)


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # a sample that is left out would be no comparison
    print("| case | directions | largest of the ten differences | in | KKT residual |\n|---|---:|---:|---|---:|")
    for case in CASES:
        if not names or case.name in names:
            difference, count, residual = differences(case)
            worst = MEASURES[int(difference.argmax())] + (" (alone)" if len(difference) == 1 else "")
            print(
                f"| {case.name}: {case.title} | {count} | {float(difference.max()):.0e} | {worst} | {residual:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
