"""Watch the geometry of a network's representation while it trains.

The flow, and where to read on: a :class:`ProbeSet` goes through the model, :mod:`geomonitor.capture` takes the features
of a layer, the pure functions of :mod:`geomonitor.markers` turn them into numbers, the metrics accumulate them, and
:class:`GeometryMonitor` (start there) makes records and verdicts of it all.
"""

from geomonitor import plots
from geomonitor.alerts import GeometryDeclineWarning
from geomonitor.capture import captured
from geomonitor.decline import Detector, Verdict
from geomonitor.detectors import DETECTORS, Cusum, DropFromReference, ReferenceRuns, Trend
from geomonitor.errors import GeomonitorError, GeomonitorWarning, InputError, MeasurementError
from geomonitor.markers import MARKER_GROUPS, MARKERS
from geomonitor.markers.collapse import NeuralCollapse, neural_collapse
from geomonitor.markers.effective_geometry import EffectiveGeometry
from geomonitor.markers.manifolds import manifold_geometry
from geomonitor.markers.spectrum import effective_rank, numerical_rank, participation_ratio, rankme, stable_rank
from geomonitor.metrics import (
    ClassStructure,
    FeatureSpectrum,
    LogitStatistics,
    ManifoldGeometry,
    PointStatistics,
)
from geomonitor.monitor import GeometryMonitor
from geomonitor.passive import ValidationProbe
from geomonitor.probe import ProbeSet
from geomonitor.records import History, Record, Series
from geomonitor.snapshot import Snapshot, take_snapshot

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
    "FeatureSpectrum",
    "GeometryDeclineWarning",
    "GeometryMonitor",
    "GeomonitorError",
    "GeomonitorWarning",
    "History",
    "InputError",
    "LogitStatistics",
    "ManifoldGeometry",
    "MeasurementError",
    "NeuralCollapse",
    "PointStatistics",
    "ProbeSet",
    "Record",
    "ReferenceRuns",
    "Series",
    "Snapshot",
    "Trend",
    "ValidationProbe",
    "Verdict",
    "captured",
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
