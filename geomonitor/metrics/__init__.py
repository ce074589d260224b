"""Markers as ``torchmetrics.Metric`` classes: state and synchronisation. The formulas are in ``markers`` and ``glue``.

One class per kind of state. Each takes ``update(features, labels)`` any number of times, in any batch split and on any
number of processes, and gives ``compute() -> dict[str, Tensor]`` with the names that ``geomonitor.markers`` lists,
0-dim float64 each, so that ``self.log_dict(metric.compute())`` logs them. ``metric(features, labels)`` adds a batch and
returns the markers of that batch alone, NaN if they are undefined there: at the cost of a ``compute`` a batch.
"""

from geomonitor.metrics.factor_metrics import FactorStructure
from geomonitor.metrics.head_metrics import GradientCoherence
from geomonitor.metrics.instance_metrics import InstanceStructure
from geomonitor.metrics.moment_metrics import ClassStructure, FeatureSpectrum
from geomonitor.metrics.point_metrics import LogitStatistics, ManifoldGeometry, PointStatistics
from geomonitor.metrics.routing_metrics import RoutingStatistics

__all__ = [
    "ClassStructure",
    "FactorStructure",
    "FeatureSpectrum",
    "GradientCoherence",
    "InstanceStructure",
    "LogitStatistics",
    "ManifoldGeometry",
    "PointStatistics",
    "RoutingStatistics",
]
