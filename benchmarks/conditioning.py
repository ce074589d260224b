"""How well posed a measurement is: ``OMP_NUM_THREADS=1 python -m benchmarks.conditioning [kind ...]``.

Features of several kinds are measured as they are (float64), with relative noise of 1e-7 on each entry (what another
batch size, number of threads or a fused kernel does to float32), and rounded to bfloat16. Printed is by how many
standard errors each marker of the default set moves; for the geometry also what the ridge itself changes, the share of
directions that are left out, and the processor time. NaN: the measurement gives NaN, with a reason.

The geometry has standard errors over directions. Those of the other markers are over points, by a jackknife that leaves
out a tenth of each class at a time; a whole number is known to half a unit.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from time import process_time

import torch
from torch import Tensor

from benchmarks.cases import Features, collapsed, trained
from geomonitor.errors import GeomonitorWarning
from geomonitor.features.linear_head import Head
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.result import EffectiveGeometry
from geomonitor.markers.table import COUNTS, MARKER_GROUPS
from geomonitor.measure.compute import compute_markers

CLASSES, POINTS = 6, 50
RIDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
GEOMETRY = ("capacity", "dimension", "radius", "utility")
OTHERS = tuple(name for name in MARKER_GROUPS["default"] if name not in (*GEOMETRY, "accuracy"))
FOLDS = 10
HALF_A_UNIT = 0.5


def low_rank(rank: int, units: int) -> Features:
    """A linear bottleneck: class means and noise of a few dimensions, spread over all units."""
    stream = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, 1, rank, generator=stream, dtype=torch.float64)
    noises = torch.randn(CLASSES, POINTS, rank, generator=stream, dtype=torch.float64)
    axes = torch.randn(rank, units, generator=stream, dtype=torch.float64)
    return (means + 0.3 * noises).flatten(0, 1) @ axes, torch.arange(CLASSES).repeat_interleave(POINTS)


def dead_units() -> Features:
    """A trained network of which half of the units are zero at all points."""
    features, labels = trained(CLASSES, POINTS, 128)
    return features * (torch.arange(128) % 2), labels


KINDS: dict[str, Callable[[], Features]] = {
    "trained": lambda: trained(CLASSES, POINTS, 128),
    "untrained": lambda: trained(CLASSES, POINTS, 128, steps=0),
    "nearly collapsed": lambda: collapsed(CLASSES, POINTS, 128),
    "dead units": dead_units,
    "rank 2 of 64": lambda: low_rank(2, 64),
    "rank 2 of 128": lambda: low_rank(2, 128),
    "rank 5 of 64": lambda: low_rank(5, 64),
    "rank 5 of 128": lambda: low_rank(5, 128),
    "rank 2 of 64, then ReLU": lambda: (low_rank(2, 64)[0].relu(), low_rank(2, 64)[1]),
}


def entry_noise(features: Tensor) -> Tensor:
    """Each entry changed by a part of about 1e-7."""
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return features * (1 + 1e-7 * noise)


NOISES: dict[str, Callable[[Tensor], Tensor]] = {"1e-7": entry_noise, "bf16": lambda features: features.bfloat16()}


def measured(features: Tensor, labels: Tensor, ridge: float) -> EffectiveGeometry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeomonitorWarning)  # what is left out is in the table
        return manifold_geometry(features, labels, ridge=ridge)


def moved(result: EffectiveGeometry, base: EffectiveGeometry) -> list[float]:
    """Change of the geometry in standard errors, by marker; NaN if it is undefined."""
    found = []
    for name in GEOMETRY:
        change, error = getattr(result, name) - getattr(base, name), getattr(base.standard_error, name)
        found.append(float(change.abs() / error) if change != 0 else 0.0)
    return found


def other_markers(features: Tensor, labels: Tensor) -> dict[str, float]:
    dtype = "bfloat16" if features.dtype == torch.bfloat16 else "float32"
    found = compute_markers(
        features, labels, OTHERS, head=Head(), reference=None, geometry_options={}, dtype=dtype
    ).values
    return {name: found[name][0] for name in OTHERS}


def text(change: float) -> str:
    return "NaN" if math.isnan(change) else f"{change:.2g}"


def errors_over_points(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Standard errors of the other markers, by the jackknife of ``FOLDS`` groups."""
    fold = torch.arange(len(labels)) % FOLDS
    left = [other_markers(features[fold != k], labels[fold != k]) for k in range(FOLDS)]
    found = {}
    for name in OTHERS:
        values = torch.tensor([row[name] for row in left], dtype=torch.float64)
        error = float(((FOLDS - 1) * values.var(correction=0)).sqrt())
        found[name] = max(error, HALF_A_UNIT) if name in COUNTS else error
    return found


def geometry_rows(kind: str) -> None:
    features, labels = KINDS[kind]()
    features = features.double()
    exact = measured(features, labels, 0.0)
    for ridge in RIDGES:
        start = process_time()
        base = measured(features, labels, ridge)
        seconds = process_time() - start
        cells, left_out = [], [int(base.excluded)]
        for noise in NOISES.values():
            result = measured(noise(features), labels, ridge)
            cells.append(" / ".join(map(text, moved(result, base))))
            left_out.append(int(result.excluded))
        by_ridge = text(max(value for value in moved(base, exact) if not math.isnan(value)))
        share = max(left_out) / len(base.samples.a)
        print(
            f"| {kind} | {ridge:g} | {cells[0]} | {cells[1]} | {by_ridge} | {share:.1%} | {seconds:.2g} s |", flush=True
        )


def other_rows(kind: str) -> None:
    features, labels = KINDS[kind]()
    features = features.double()
    base, errors = other_markers(features, labels), errors_over_points(features, labels)
    for name, noise in NOISES.items():
        noisy = other_markers(noise(features), labels)
        changes = [(abs(noisy[m] - base[m]), errors[m]) for m in OTHERS]
        cells = [text(change / error) if change else "0" for change, error in changes]
        print(f"| {kind} | {name} | " + " | ".join(cells) + " |", flush=True)


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    measured(*KINDS["trained"](), 0.0)  # first calls load libraries
    kinds = [kind for kind in KINDS if not names or kind in names]
    print(f"Standard errors moved, {' / '.join(GEOMETRY)}\n")
    print("| features | ridge | noise 1e-7 | bf16 | ridge against 0 | left out, at most | time |")
    print("|---|---:|---|---|---:|---:|---:|")
    for kind in kinds:
        geometry_rows(kind)
    print("\n| features | noise | " + " | ".join(OTHERS) + " |\n|---|---|" + "---:|" * len(OTHERS))
    for kind in kinds:
        other_rows(kind)


if __name__ == "__main__":
    main(sys.argv[1:])
