"""Detectors: a state and one measurement after the other. Calibrated on runs that fail and runs that do not.

Markers fall early in every healthy run, while the classes form. Only a decline after that, beyond the noise, is news.

- ``incremental``: what a detector is.
- ``levels``, ``baseline``: what the built-in ones share.
- ``drop``, ``agreeing``, ``cusum``, ``trend``, ``reference_runs``: the built-in ones.
- ``robust``, ``settings``: helpers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from geomonitor.alarms.detectors.agreeing import AgreeingDrop
from geomonitor.alarms.detectors.cusum import Cusum
from geomonitor.alarms.detectors.drop import DropFromReference
from geomonitor.alarms.detectors.incremental import IncrementalDetector, Measured
from geomonitor.alarms.detectors.reference_runs import ReferenceRuns
from geomonitor.alarms.detectors.trend import Trend
from geomonitor.errors import InputError

__all__ = [
    "DETECTORS",
    "AgreeingDrop",
    "Cusum",
    "DropFromReference",
    "IncrementalDetector",
    "Measured",
    "ReferenceRuns",
    "Trend",
    "make_detector",
]

DETECTORS: Mapping[str, Callable[..., IncrementalDetector]] = MappingProxyType(
    {
        "drop_from_reference": DropFromReference,
        "agreeing_drop": AgreeingDrop,
        "cusum": Cusum,
        "trend": Trend,
        "reference_runs": ReferenceRuns,
    }
)
"""Detectors by name, for configuration files."""


def make_detector(name: str, **settings: Any) -> IncrementalDetector:
    """A detector by its name.

    Args:
        name: of :data:`DETECTORS`.
        **settings: of that detector; by default its own.

    Raises:
        InputError: no detector of that name, or settings that it does not take, or needs.

    >>> make_detector("drop_from_reference", drop=0.2).drop
    0.2
    """
    if name not in DETECTORS:
        raise InputError(f"no detector is called {name!r}; there are {', '.join(DETECTORS)}")
    try:
        return DETECTORS[name](**settings)
    except TypeError as error:
        raise InputError(f"{name} does not take these settings: {error}") from error
