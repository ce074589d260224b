"""Runs as a callback leaves them, for the tests of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from geomonitor import History, Record

PROTOCOL: dict[str, Any] = {"probe": "c2697f62aabe614c", "per_class": 50, "seed": 0}
MEASUREMENTS = 20
FAULT = 12
STEPS = 24


def write_run(
    directory: Path,
    *,
    faulty: bool = False,
    layer: str = "penultimate",
    protocol: dict[str, Any] | None = None,
    panel: dict[str, Any] | None = None,
) -> Path:
    """A run of 20 measurements; in a faulty one dimension and utility fall by half at measurement 12."""
    noise = np.random.default_rng(0).normal(0, 0.01, (4, MEASUREMENTS))
    history = History()
    history.open(directory / "geometry.csv", PROTOCOL if protocol is None else protocol, panel)
    for n in range(MEASUREMENTS):
        low = 0.5 if faulty and n >= FAULT else 1.0
        dimension, utility, radius = 2 * low + noise[0, n], 0.2 * low + noise[1, n] / 10, 0.7 + noise[2, n]
        values = {
            "capacity": utility * (1 + radius**-2) / dimension,
            "dimension": dimension, "radius": radius, "utility": utility, "nc1": 0.3 + noise[3, n], "rankme": 5.0,
            "alarm": float(faulty and n >= FAULT + 1),
        }  # fmt: skip
        errors = {"capacity": 0.01, "dimension": 0.05, "radius": 0.02, "utility": 0.01}
        now = 1e9 + 60 * n
        moment = (STEPS * (n + 1), n)
        history.append(
            [Record(*moment, layer, name, value, errors.get(name, np.nan), now) for name, value in values.items()]
        )
        history.append([Record(*moment, "", "seconds", 0.5, time=now)])
    return directory
