"""The markers as ``torchmetrics.Metric`` classes; the formulas are in ``markers`` and ``glue``."""

from geomonitor.metrics.metrics import (
    ClassStructure,
    FeatureSpectrum,
    LogitStatistics,
    ManifoldGeometry,
    PointStatistics,
)

__all__ = ["ClassStructure", "FeatureSpectrum", "LogitStatistics", "ManifoldGeometry", "PointStatistics"]
