"""Watch the geometry of a network's representation while it trains.

The flow is the tree: a :class:`ProbeSet` (``probe``) goes through the model (``features``), pure functions turn the
features of a layer into numbers (``markers``, ``glue``), a measurement (``measure``) becomes records (``history``) and
verdicts (``alarms``). :class:`GeometryMonitor` puts it all together: start there.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geomonitor import plots
    from geomonitor.alarms.detectors import DETECTORS, Cusum, DropFromReference, ReferenceRuns, Trend
    from geomonitor.alarms.panel import Panel
    from geomonitor.alarms.status_text import Status
    from geomonitor.alarms.verdict import Detector, Verdict
    from geomonitor.alarms.words import GeometryDeclineWarning
    from geomonitor.errors import GeomonitorError, GeomonitorWarning, InputError, MeasurementError
    from geomonitor.features.capture import captured
    from geomonitor.features.routing import captured_routing
    from geomonitor.glue.manifolds import manifold_geometry
    from geomonitor.glue.options import GeometryOptions
    from geomonitor.glue.result import EffectiveGeometry
    from geomonitor.history.history import History
    from geomonitor.history.records import Record, Series
    from geomonitor.markers import MARKER_GROUPS, MARKERS
    from geomonitor.markers.collapse import NeuralCollapse, neural_collapse
    from geomonitor.markers.spectrum import effective_rank, numerical_rank, participation_ratio, rankme, stable_rank
    from geomonitor.measure.snapshot import Snapshot, take_snapshot
    from geomonitor.metrics import (
        ClassStructure,
        FactorStructure,
        FeatureSpectrum,
        GradientCoherence,
        InstanceStructure,
        LogitStatistics,
        ManifoldGeometry,
        PointStatistics,
        RoutingStatistics,
    )
    from geomonitor.monitor import GeometryMonitor
    from geomonitor.probe.probe_set import ProbeSet
    from geomonitor.probe.token_probe import TokenProbe
    from geomonitor.probe.transfer import TransferProbe
    from geomonitor.probe.validation_probe import ValidationProbe
    from geomonitor.probe.views import Views
    from geomonitor.run import MonitoredRun

__version__ = "0.1.0.dev0"

__all__ = [
    "DETECTORS",
    "MARKERS",
    "MARKER_GROUPS",
    "ClassStructure",
    "Cusum",
    "Detector",
    "DropFromReference",
    "EffectiveGeometry",
    "FactorStructure",
    "FeatureSpectrum",
    "GeometryDeclineWarning",
    "GeometryMonitor",
    "GeometryOptions",
    "GeomonitorError",
    "GeomonitorWarning",
    "GradientCoherence",
    "History",
    "InputError",
    "InstanceStructure",
    "LogitStatistics",
    "ManifoldGeometry",
    "MeasurementError",
    "MonitoredRun",
    "NeuralCollapse",
    "Panel",
    "PointStatistics",
    "ProbeSet",
    "Record",
    "ReferenceRuns",
    "RoutingStatistics",
    "Series",
    "Snapshot",
    "Status",
    "TokenProbe",
    "TransferProbe",
    "Trend",
    "ValidationProbe",
    "Verdict",
    "Views",
    "captured",
    "captured_routing",
    "effective_rank",
    "manifold_geometry",
    "neural_collapse",
    "numerical_rank",
    "participation_ratio",
    "plots",
    "rankme",
    "stable_rank",
    "take_snapshot",
]

_HOMES = MappingProxyType(
    {
        "alarms.detectors": (
            "DETECTORS",
            "Cusum",
            "DropFromReference",
            "ReferenceRuns",
            "Trend",
        ),
        "alarms.panel": ("Panel",),
        "alarms.verdict": (
            "Detector",
            "Verdict",
        ),
        "alarms.words": ("GeometryDeclineWarning",),
        "errors": (
            "GeomonitorError",
            "GeomonitorWarning",
            "InputError",
            "MeasurementError",
        ),
        "features.capture": ("captured",),
        "features.routing": ("captured_routing",),
        "glue.manifolds": ("manifold_geometry",),
        "glue.options": ("GeometryOptions",),
        "glue.result": ("EffectiveGeometry",),
        "history.history": ("History",),
        "history.records": (
            "Record",
            "Series",
        ),
        "markers": (
            "MARKER_GROUPS",
            "MARKERS",
        ),
        "markers.collapse": (
            "NeuralCollapse",
            "neural_collapse",
        ),
        "markers.spectrum": (
            "effective_rank",
            "numerical_rank",
            "participation_ratio",
            "rankme",
            "stable_rank",
        ),
        "measure.snapshot": (
            "Snapshot",
            "take_snapshot",
        ),
        "metrics": (
            "ClassStructure",
            "FactorStructure",
            "FeatureSpectrum",
            "GradientCoherence",
            "InstanceStructure",
            "LogitStatistics",
            "ManifoldGeometry",
            "PointStatistics",
            "RoutingStatistics",
        ),
        "monitor": ("GeometryMonitor",),
        "probe.probe_set": ("ProbeSet",),
        "probe.token_probe": ("TokenProbe",),
        "probe.transfer": ("TransferProbe",),
        "probe.validation_probe": ("ValidationProbe",),
        "probe.views": ("Views",),
        "run": ("MonitoredRun",),
        "alarms.status_text": ("Status",),
    }
)
"""Modules of the public names. A name is imported when it is used: ``import geomonitor`` and ``geomonitor --help``
cost next to nothing."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "plots":
        return importlib.import_module("geomonitor.plots")
    for module, names in _HOMES.items():
        if name in names:
            found = getattr(importlib.import_module(f"geomonitor.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'geomonitor' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names; submodules are reached by importing them."""
    return sorted(__all__)
