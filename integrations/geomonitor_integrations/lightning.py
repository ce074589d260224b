"""Callbacks for a Trainer of ``lightning.pytorch``."""

from __future__ import annotations

from geomonitor_integrations._lightning_hooks import GeometryHooks
from geomonitor_integrations._lightning_stop import StopOnDecline

try:
    from lightning.pytorch.callbacks import Callback, EarlyStopping
except ImportError as error:
    raise ImportError('lightning.pytorch is missing: pip install "geomonitor[lightning]"') from error

__all__ = ["GeometryCallback", "GeometryEarlyStopping"]


class GeometryCallback(GeometryHooks, Callback):
    """Measures the geometry of the representation while a Trainer fits, logs it and warns of a decline.

    Logged, on every rank: ``geometry/<layer>/<marker>``, ``geometry/<layer>/alarm`` (0 or 1),
    ``geometry/<layer>/nonfinite_rows``, ``geometry/seconds`` and ``geometry/overhead``.
    Any logger gets them; EarlyStopping, ModelCheckpoint and ReduceLROnPlateau can monitor them. All records are also in
    ``geometry.csv`` in the directory of the run, and in checkpoints, from which a resumed run goes on.

    The weights that are validated are measured: with ``WeightAveraging`` the averaged ones, in either order of the
    callbacks, and the weights that train where an epoch has no validation. With ``max_overhead`` some epochs are passed
    over, never the last one; the patience of Lightning's own ``EarlyStopping`` counts epochs, also those between two
    measurements, that of the detector and ``GeometryEarlyStopping`` counts measurements.

    Args:
        probe: a held-out, in-distribution ``ProbeSet``, a ``ValidationProbe`` (no extra forward passes: the features
            come from those of the validation loop, the first loader's if there are several), or a ready-made
            ``GeometryMonitor``.
        every_n_epochs: epochs between two measurements, from the first epoch on.
        every_n_steps: optimiser steps between two measurements, instead of epochs; four times an epoch finds
            faults sooner than once (``docs/warnings.md``).
        name: tells two callbacks of one Trainer apart, for instance of other layers or another probe set: keys become
            ``geometry/<name>/<layer>/<marker>``, the file ``geometry_<name>.csv``.
        directory: where ``geometry.csv`` goes; by default the log directory of the Trainer.
        allow_protocol_change: start a new series where a checkpoint was measured by another protocol, not an error.
        figures_every_n: measurements between two sets of figures (spectrum, class centres, class clouds, class
            dimensions) for TensorBoard, W&B or MLflow, from the first one on; 0 for none. By default every tenth where
            matplotlib is installed.
        **monitor_options: as in ``GeometryMonitor``: layers, markers, detector, ...

    Raises:
        InputError: an option that does not make sense, a Trainer of another namespace.

    >>> import torch, geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    >>> callback = GeometryCallback(gm.ProbeSet.from_dataset(data, per_class=20), every_n_epochs=1)
    """


class GeometryEarlyStopping(StopOnDecline, EarlyStopping):
    """Ends training on all ranks alike once the geometry of a layer has declined, and says why.

    Needs a ``GeometryCallback`` in the same Trainer, whose detector decides what a decline is.

    Args:
        layer: alias of the layer whose alarm stops the run.
        name: of the callback that measures it, if it has one.
    """
