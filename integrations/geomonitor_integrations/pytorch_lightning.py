"""Callbacks for a Trainer of ``pytorch_lightning``."""

from __future__ import annotations

from geomonitor_integrations._lightning_checkpoint import KeepLastHealthy
from geomonitor_integrations._lightning_hooks import GeometryHooks
from geomonitor_integrations._lightning_stop import StopOnDecline

try:
    from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
except ImportError as error:
    raise ImportError('pytorch_lightning is missing: pip install "geomonitor[pytorch-lightning]"') from error

__all__ = ["GeometryCallback", "GeometryCheckpoint", "GeometryEarlyStopping"]


class GeometryCallback(GeometryHooks, Callback):
    """See :class:`geomonitor_integrations.lightning.GeometryCallback`; this one is for ``pytorch_lightning``."""


class GeometryEarlyStopping(StopOnDecline, EarlyStopping):
    """See :class:`geomonitor_integrations.lightning.GeometryEarlyStopping`; this one is for ``pytorch_lightning``."""


class GeometryCheckpoint(KeepLastHealthy, ModelCheckpoint):
    """See :class:`geomonitor_integrations.lightning.GeometryCheckpoint`; this one is for ``pytorch_lightning``."""
