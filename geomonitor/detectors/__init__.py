"""Detectors: pure functions of one series of measurements. Calibrated on runs that fail and runs that do not.

Markers fall early in every healthy run, while the classes form. Only a decline after that, beyond the noise, is news.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from geomonitor.decline import Detector
from geomonitor.detectors.cusum import Cusum
from geomonitor.detectors.drop import DropFromReference
from geomonitor.detectors.reference_runs import ReferenceRuns
from geomonitor.detectors.trend import Trend

__all__ = ["DETECTORS", "Cusum", "DropFromReference", "ReferenceRuns", "Trend"]

DETECTORS: Mapping[str, Callable[..., Detector]] = MappingProxyType(
    {"drop_from_reference": DropFromReference, "cusum": Cusum, "trend": Trend, "reference_runs": ReferenceRuns}
)
"""Detectors by name, for configuration files."""
