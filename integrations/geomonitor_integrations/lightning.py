"""Callbacks for a Trainer of ``lightning.pytorch``."""

from __future__ import annotations

from geomonitor_integrations._lightning_checkpoint import KeepLastHealthy
from geomonitor_integrations._lightning_hooks import GeometryHooks
from geomonitor_integrations._lightning_stop import StopOnDecline

try:
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
except ImportError as error:
    raise ImportError('lightning.pytorch is missing: pip install "geomonitor[lightning]"') from error

__all__ = ["GeometryCallback", "GeometryCheckpoint", "GeometryEarlyStopping"]


class GeometryCallback(GeometryHooks, Callback):
    """Measures the geometry of the representation while a Trainer fits, logs it and warns of a decline.

    Logged, on every rank: ``geometry/<layer>/<marker>``, ``geometry/<layer>/alarm`` (0 or 1; NaN if the measurement
    failed), ``geometry/<layer>/judged`` (0 while it is too early to judge), ``geometry/<layer>/nonfinite_rows``,
    ``geometry_cost/seconds`` and ``geometry_cost/overhead``. Any logger gets them; EarlyStopping, ModelCheckpoint and
    ReduceLROnPlateau can monitor them. All records are also in ``geometry.csv`` in the directory of the run, and in
    checkpoints, from which a resumed run goes on.

    The weights that are validated are measured: with ``WeightAveraging`` the averaged ones, in either order of the
    callbacks, and the weights that train if an epoch has no validation. With ``max_overhead`` some epochs are passed
    over, never the last one; the patience of Lightning's own ``EarlyStopping`` counts epochs, also those between two
    measurements, that of the detector and ``GeometryEarlyStopping`` counts measurements.

    Args:
        probe: a held-out, in-distribution ``ProbeSet``, a ``ValidationProbe`` (the features come from the forward
            passes of the validation loop, the first loader's if there are several), or a ready-made
            ``GeometryMonitor``, to which the options of a monitor are then given. Also ``"val"``: ``per_class`` points
            of each class of the first validation loader, also that of a datamodule, refused if they are trained on; or
            a function of the Trainer that gives a ``ProbeSet``. Both are called before the first batch.
        per_class: points of each class for ``probe="val"``.
        layers: where to measure, as in ``GeometryMonitor``; so are markers, panel and geometry.
        markers: ``"default"``, ``"paper"``, ``"all"`` or names of markers.
        panel: what is judged and how; None for no verdicts.
        geometry: protocol of the manifold geometry.
        every_n_epochs: epochs between two measurements, from the first epoch on. With a ``ValidationProbe``: every
            validation that ends is measured, and with a larger number those that many epochs apart.
        every_n_steps: optimiser steps between two measurements, instead of epochs; four times an epoch finds
            faults sooner than once (``docs/warnings.md``).
        name: keeps two callbacks of one Trainer apart, for instance of other layers or another probe set: keys become
            ``geometry/<name>/<layer>/<marker>``, the file ``geometry_<name>.csv``.
        directory: where ``geometry.csv`` goes; by default the directory of the first logger, see ``docs/history.md``.
        allow_protocol_change: start a new series if a checkpoint was measured by another protocol, not an error.
        checkpoint_history: False: a checkpoint holds the last record of each marker only, and a run that goes on in
            the same directory reads the others from ``geometry.csv``.
        figures_every_n: measurements between two sets of figures (spectrum, class centres, class clouds, class
            dimensions) for TensorBoard, W&B or MLflow, from the first one on; 0 for none. By default every tenth if
            matplotlib is installed.
        confirm: measure once more, half an interval later, if that may make an alarm (not with a ``ValidationProbe``).
        expect: settings whose changes are planned, of ``"learning_rate"`` and ``"weight_decay"``: the reference starts
            anew at each. Other optimisers, losses, dropout rates, training data and trained parameters are seen by
            themselves; announce other plans by ``monitor.announce("mixup on")``.
        on_alarm: functions of (verdict, text), called once for each new alarm on rank 0.
        pool: as in ``GeometryMonitor``; so are forward, batch_size, shifts, max_overhead and on_error.
        forward: ``forward(model, inputs)`` runs the model on one probe batch.
        batch_size: points in one forward pass of the probe.
        shifts: input shifts under which to measure the accuracy.
        truth: a ``TransferProbe``: labelled points of new classes, on which transfer is measured beside the markers.
        coherence_probe: a ``ProbeSet`` of training points, of which ``network_coherence`` is measured.
        coherence_loss: ``loss(output, label)`` of one of them; by default the cross-entropy of its logits.
        max_overhead: seconds of measuring allowed per second of training.
        on_error: ``"warn"`` or ``"raise"``.
        process_group: a function that returns the group of the processes that measure together, if not all.
        fibers: ``geomonitor.explain.Fibers(prior, ...)``: at an alarm a picture of what the layer no longer sees goes
            to the loggers, and to ``fibers.png`` beside the history. Costs the time of drawing at each alarm, and a
            copy of the weights in CPU memory unless a ``GeometryCheckpoint`` keeps them in a file. One process only.

    Raises:
        InputError: an option that does not make sense, a Trainer of another namespace.

    >>> import torch, geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    >>> callback = GeometryCallback(gm.ProbeSet.from_dataset(data, per_class=20), every_n_epochs=1)
    """


class GeometryEarlyStopping(StopOnDecline, EarlyStopping):
    """Ends training on all ranks alike once the geometry of a layer has declined, and prints the reason.

    Needs a ``GeometryCallback`` in the same Trainer, whose detector decides what a decline is.

    Args:
        layer: alias of the layer whose alarm stops the run.
        name: of the callback that measures it, if it has one.
    """


class GeometryCheckpoint(KeepLastHealthy, ModelCheckpoint):
    """A ``ModelCheckpoint`` that also keeps the last checkpoint from before a decline, however long the decline lasts.

    It stands beside the others as ``healthy-epoch=7-step=192.ckpt``, with a mark (the same name and ``.json``): one
    file more than ``save_top_k`` at most. While nothing declines it moves on with the newest checkpoint; with
    ``monitor=`` a state that is none of the best is also saved for it, if it was measured at that step. The warning,
    the report and ``callback.monitor.last_healthy`` name it. Your own files are never deleted.

    Needs a ``GeometryCallback`` in the same Trainer, whose panel decides what a decline is. All other arguments are
    passed on to ``ModelCheckpoint``.

    Args:
        restore: load its weights at the end of a run that is declining, also if ``GeometryEarlyStopping`` stopped it.
        name: of the callback that measures, if it has one.

    >>> checkpoint = GeometryCheckpoint(save_top_k=1, every_n_epochs=1, restore=True)
    """
