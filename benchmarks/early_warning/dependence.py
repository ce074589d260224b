"""Which votes are dependent: families of markers that decline at the same measurements of healthy runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_warning.trajectories import Run
from benchmarks.early_warning.warners import Warner, shares_of
from geomonitor.alarms.votes import family_of


def alarm_series(warner: Warner, runs: Sequence[Run]) -> dict[str, NDArray[np.float64]]:
    """Whether each family has a vote or a share of one, at every measurement of all runs, one after the other."""
    found: dict[str, NDArray[np.float64]] = {}
    for marker, detector in warner.detectors.items():
        on = np.concatenate([shares_of(detector, run, marker) > 0 for run in runs]).astype(np.float64)
        family = family_of(marker)
        found[family] = np.maximum(found.get(family, on), on)
    return found


def phi(on: Mapping[str, NDArray[np.float64]]) -> dict[tuple[str, str], float]:
    """Phi coefficient of each pair: the correlation of two series of 0 and 1; NaN of one that never changes.

    >>> round(phi({"a": np.array([1.0, 1, 0, 0]), "b": np.array([1.0, 0, 0, 0])})["a", "b"], 3)
    0.577
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.corrcoef(np.stack([*on.values()]))
    return {(a, b): float(matrix[i, j]) for (i, a), (j, b) in itertools.combinations(enumerate(on), 2)}


def sentence(warner: Warner, runs: Sequence[Run]) -> str:
    """The phi coefficients over healthy runs, in a sentence."""
    healthy = [run for run in runs if run.healthy]
    on = alarm_series(warner, healthy)
    pairs = sorted(((pair, round(value, 2)) for pair, value in phi(on).items()), key=lambda pair: -pair[1])
    shares = ", ".join(f"{family} at {100 * series.mean():.1f} %" for family, series in on.items())
    return (
        f"Over {len(healthy)} healthy runs a family declines at this share of the "
        f"measurements: {shares}. Phi coefficients, the correlation of two families' series of declines: "
        + ", ".join(f"{a} and {b} {value + 0:.2f}" for (a, b), value in pairs)
        + ". Votes of a pair with a large coefficient are not independent. The rates of false alarms above are of all "
        "votes together, so that this is in them already."
    )
