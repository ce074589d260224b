"""Passive measurement: the points come from the validation loop's own forward passes.

Of each class the ``M`` points of lowest pseudo-random priority are kept, a function of the seed and the point's id
alone: the same points at every validation, in any batch split and on any number of processes, as long as a point keeps
its id.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from geomonitor._distributed import ALL_PROCESSES, Processes
from geomonitor.errors import MeasurementError
from geomonitor.features.capture import Pool
from geomonitor.features.routing import LayerRouting
from geomonitor.measure.measurement import Measurement
from geomonitor.measure.validation_batch import FindPlace, Place, ValidationBatch, watched_batch
from geomonitor.probe.reservoir import EMPTY, Reservoir, add_points, empty_reservoir, merge_reservoirs, priority
from geomonitor.probe.validation_probe import ValidationProbe

LOGITS = ":logits"
"""Key of the logits among the features of layers."""
ROUTING = ":routing:"
"""With this the keys of routers among them begin."""


class ValidationPass:
    """Collects the points of one validation; see :meth:`geomonitor.GeometryMonitor.validation_pass`.

    Hooks live from :meth:`open` to :meth:`close`, one batch; an error of this object's own in between is kept and
    raised by the measurement, so that the validation continues.

    Args:
        model: whose forward is watched.
        find: finds where to measure, at the first batch.
        probe: which points.
        pool: see :func:`geomonitor.features.capture.captured`.
        dataset_length: items of the validation set, if their number is known and they are read in order: what a
            distributed sampler repeats at the end to make its parts even counts once.
        processes: that validate and measure together.
    """

    def __init__(
        self,
        model: nn.Module,
        find: FindPlace,
        probe: ValidationProbe,
        *,
        pool: Pool = "auto",
        dataset_length: int | None = None,
        processes: Processes = ALL_PROCESSES,
    ) -> None:
        self._model = model
        self._find = find
        self._processes = processes
        self._probe = probe
        self._pool = pool
        self._length = dataset_length
        self._place: Place | None = None
        self._classes = torch.tensor(probe.classes)
        self._reservoir: Reservoir | None = None
        self._widths: dict[str, int] = {}
        self._seen = 0
        self._block = ExitStack()
        self._watched: ValidationBatch | None = None
        self._labels = self._classes[:0]  # of the batch that is watched
        self.failure: Exception | None = None
        """the first error, if there was one"""
        self.seconds = 0.0
        """time spent here, beyond the validation's own"""
        self.points = ""
        """fingerprint of the chosen points, after :meth:`add_to`"""
        self._dtypes: dict[str, str] = {}

    @contextmanager
    def batch(self, batch: Any) -> Iterator[None]:
        """Watch the forward pass of one batch, which is run inside the block.

        Args:
            batch: as the loader gives it, from which labels and ids are taken.
        """
        self.open(batch)
        try:
            yield
        except BaseException:
            self.abandon()
            raise
        self.close(batch)

    def open(self, batch: Any) -> None:
        """Put the hooks on for a batch; at the first one, find out which layers these are.

        Args:
            batch: as the loader gives it.
        """
        if self.failure is not None:
            return
        started = perf_counter()
        try:
            inputs, self._labels = self._probe.inputs_in(batch), self._probe.labels_in(batch)
            if self._place is None:
                self._place = self._find(self._model, inputs, len(self._labels))
            watched = watched_batch(self._model, inputs, len(self._labels), self._place, self._pool)
            self._watched = self._block.enter_context(watched)
        except Exception as error:  # noqa: BLE001 - raised by the measurement; the validation continues
            self.failure = error
            self.abandon()
        self.seconds += perf_counter() - started

    def close(self, batch: Any) -> None:
        """Take the hooks off again and keep what belongs to the chosen points of ``batch``."""
        started, watched = perf_counter(), self._watched
        self._watched = None
        try:
            self._block.close()
            if watched is not None:
                self._dtypes |= watched.features.dtypes
                with torch.inference_mode(False), torch.no_grad():
                    self._keep(watched, self._labels, self._probe.ids and self._probe.ids(batch))
        except Exception as error:  # noqa: BLE001 - raised by the measurement; the validation continues
            self.failure = self.failure or error
        self.seconds += perf_counter() - started

    def abandon(self) -> None:
        """Take the hooks off without keeping anything, after an error of the validation itself."""
        self._watched = None
        with suppress(Exception):  # that the layers did not run is the other error's fault
            self._block.close()

    def add_to(self, measurement: Measurement, *, known: str | None = None) -> None:
        """Add this process's share of the chosen points of all processes to a measurement.

        All processes have to call this together.

        Args:
            measurement: that takes the points.
            known: ``points`` of the measurement before, if there was one.

        Raises:
            MeasurementError: no process has seen a point of the classes; other points than the known ones.
            Exception: an error while collecting in this process; other processes go on to the measurement's own check.
        """
        held = self._reservoir
        parts = self._processes.gathered(
            None if held is None else (held.features.cpu(), held.priorities.cpu(), self._widths, str(self._place))
        )
        if self.failure is not None:
            raise self.failure
        found = [part for part in parts if part is not None]
        if not found:
            raise MeasurementError(
                f"the validation loop had no points of the classes {self._probe.classes}: is ValidationProbe(classes=) "
                "right, and does the validation loader have batches?"
            )
        widths = found[0][2]
        if any(place != found[0][3] for *_, place in found):
            places = " and ".join(sorted({place for *_, place in found}))
            raise MeasurementError(f"not all processes found the same layers: {places}. Name the layer")
        merged = merge_reservoirs([Reservoir(features, priorities) for features, priorities, *_ in found])
        self.points = hashlib.sha256(merged.priorities.numpy().astype("<i8").tobytes()).hexdigest()[:16]
        if known is not None and self.points != known:
            raise MeasurementError(
                "the validation loop gave other points than at the measurements before, with which these cannot be "
                "compared: does the loader shuffle, or was limit_val_batches or the data set changed? Give "
                "ValidationProbe(ids=...) names of the points that do not change."
            )
        filled = torch.nonzero(merged.priorities != EMPTY)
        mine = torch.arange(len(filled))[self._processes.rank :: self._processes.size]
        classes, slots = filled[mine].unbind(1)
        columns = torch.split(merged.features[classes, slots], list(widths.values()), dim=1)
        rows = dict(zip(widths, columns, strict=True))
        logits = rows.pop(LOGITS, None)
        routing = {key: rows.pop(key) for key in list(rows) if key.startswith(ROUTING)}
        measurement.dtypes |= {layer: dtype for layer, dtype in self._dtypes.items() if layer in rows}
        ids = classes * self._probe.per_class + slots
        measurement.update(rows, {"": logits}, self._classes[classes], ids)
        if routing:
            layers = {key.removeprefix(ROUTING): LayerRouting.of_rows(each) for key, each in routing.items()}
            measurement.routing.update(layers, ids)

    def _keep(self, batch: ValidationBatch, labels: Tensor, ids: Tensor | None) -> None:
        ids = self._positions(len(labels)) if ids is None else torch.as_tensor(ids).cpu().to(torch.int64)
        self._seen += len(labels)
        classes = torch.searchsorted(self._classes, labels).clamp(max=len(self._classes) - 1)
        order = priority(ids, self._probe.seed)
        chosen = self._classes[classes] == labels
        if self._reservoir is not None:  # most batches have few points of lower priority than those held
            chosen &= order < self._reservoir.priorities[:, -1][classes]
        for layer, rows in batch.features.items():
            if len(rows) != len(labels):
                raise MeasurementError(
                    f"layer {layer!r} gave {len(rows)} rows for {len(labels)} labels of a validation batch: the model "
                    "must run once on the whole batch in validation_step, batch first"
                )
        if not chosen.any():
            return
        columns = self._with_logits(batch, len(labels))
        columns |= {f"{ROUTING}{path}": layer.rows() for path, layer in batch.routing.items()}
        # Layers side by side, so that one choice serves all; half precision as float32, which is exact.
        parts = [rows[chosen.to(rows.device)].cpu() for rows in columns.values()]
        rows = torch.cat([part.float() if part.element_size() < 4 else part for part in parts], dim=1)
        if self._reservoir is None:
            self._widths = {name: part.shape[1] for name, part in zip(columns, parts, strict=True)}
            self._reservoir = empty_reservoir(len(self._classes), self._probe.per_class, rows)
        self._reservoir = add_points(self._reservoir, rows, classes[chosen], order[chosen])

    def _with_logits(self, batch: ValidationBatch, points: int) -> dict[str, Tensor]:
        """Features and logits, if the batches have these; NaN in a batch that has none, unlike the first one."""
        logits = batch.logits if batch.logits is not None and len(batch.logits) == points else None
        wide = self._widths.get(LOGITS) if self._widths else None if logits is None else logits.shape[1]
        if wide is None:
            return dict(batch.features)
        if logits is None or logits.shape[1] != wide:
            logits = torch.full((points, wide), math.nan)
        return {**batch.features, LOGITS: logits}

    def _positions(self, points: int) -> Tensor:
        """Places of the next points in the validation set, which processes read dealt out one point each."""
        places = (self._seen + torch.arange(points)) * self._processes.size + self._processes.rank
        return places if self._length is None else places % self._length
