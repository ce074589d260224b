"""Awkward inputs at the size of case D: ``OMP_NUM_THREADS=1 python -m benchmarks.bad_inputs``.

What must equal the plain features is compared with them; the others must end in a number, or in NaN with one warning,
or in an error that names the rows. Small cases of the same are in ``tests/markers/test_manifolds.py``.
"""

from __future__ import annotations

import warnings
from time import process_time

import torch
from torch import Tensor

from benchmarks.cases import Features, trained
from geomonitor.errors import InputError
from geomonitor.glue.manifolds import manifold_geometry

DIRECTIONS = 20
SAME = 1e-8


def inputs() -> dict[str, tuple[Features, Features | None]]:
    """Each input, and what it must equal."""
    features, labels = trained(100, 50, 512, steps=1500, inputs=256)
    features = features.double()
    plain = features, labels
    half, brain = features.half(), features.bfloat16()
    zeros, twins, broken = features.clone(), features.clone(), features.clone()
    zeros[labels == 3] = 0
    twins[labels == 4] = twins[labels == 5]
    broken[7, 0] = broken[8, 1] = torch.nan
    single = (labels != 6) | (torch.arange(len(labels)) == int((labels == 6).nonzero()[0]))
    return {
        "as they are (Q = 5,000 > N)": (plain, plain),
        "every point twice": ((features.repeat_interleave(2, 0), labels.repeat_interleave(2)), plain),
        "times 1e15": ((features * 1e15, labels), plain),
        "times 1e-15": ((features * 1e-15, labels), plain),
        "float16": ((half, labels), (half.double(), labels)),
        "bfloat16": ((brain, labels), (brain.double(), labels)),
        "a class of one point": ((features[single], labels[single]), None),
        "a class of zeros": ((zeros, labels), None),
        "two classes of the same points": ((twins, labels), None),
        "all features equal": ((torch.ones_like(features), labels), None),
        "all features zero": ((torch.zeros_like(features), labels), None),
        "two rows with NaN": ((broken, labels), None),
    }


def outcome(given: Features, same_as: Features | None) -> str:
    """What happens, in words; what must equal something and does not is an error."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = manifold_geometry(*given, directions=DIRECTIONS)
        except InputError as error:
            return f"refused: {error}"
    if len(told) > 1:
        raise AssertionError(f"{len(told)} warnings: {[str(one.message) for one in told]}")
    values = torch.stack(found.measures)
    if same_as is not None:
        difference = largest_difference(
            values, torch.stack(manifold_geometry(*same_as, directions=DIRECTIONS).measures)
        )
        if not difference <= SAME:
            raise AssertionError(f"differs by {difference:.0e}")
        return f"the same, to {difference:.0e}"
    undefined = int(values.isnan().sum())
    said = f", one warning: {told[0].message}" if told else ""
    return f"dimension {float(found.dimension):.3g}, {undefined} of 10 undefined, {int(found.excluded)} left out{said}"


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def main() -> None:
    torch.set_num_threads(1)
    print("| input | what happens | processor time |\n|---|---|---:|")
    for name, (given, same_as) in inputs().items():
        start = process_time()
        said = outcome(given, same_as)
        print(f"| {name} | {said} | {process_time() - start:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
