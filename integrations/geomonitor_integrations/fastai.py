"""A callback for the ``Learner`` of fastai."""

from __future__ import annotations

from functools import partial
from typing import Any

from geomonitor.adapter import Adapter, require_one_of_a_name

try:
    from fastai.callback.core import Callback, CancelFitException
    from fastai.learner import ValueMetric
except ImportError as error:
    raise ImportError('fastai is missing: pip install "geomonitor[fastai]"') from error

__all__ = ["GeometryCallback"]


class GeometryCallback(Adapter, Callback):  # type: ignore[misc]
    """Measures the geometry of the representation while a ``Learner`` fits; its numbers are columns of the recorder.

    Each epoch that is measured has ``geometry/<layer>/<marker>`` and the alarm in ``learn.recorder.values``, also of
    epochs between two measurements, so that ``EarlyStoppingCallback(monitor=key, comp=...)``, ``SaveModelCallback``
    and ``ReduceLROnPlateau`` can watch them. Batches count as steps. With a ``directory``, ``geometry.csv`` is written
    there, and ``geometry.pt`` after each epoch, from which ``learn.fit(..., start_epoch=n)`` goes on. Every other
    ``fit`` is a new series. Options: see :class:`geomonitor.adapter.Adapter`.

    >>> import torch, geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    >>> callback = GeometryCallback(gm.ProbeSet.from_dataset(data, per_class=20), every_n_epochs=2)
    """

    order = 45  # before the recorder, and the callbacks that track it

    def before_fit(self) -> None:
        if hasattr(self.learn, "lr_finder"):
            self.run = False  # as fastai's own trackers; fastai sets it back
            return
        require_one_of_a_name(self.learn.cbs)
        self._former = self.learn.metrics
        named = {key: partial(self.latest, key) for key in self.columns(self.learn.model)}
        self.learn.metrics = [*self._former, *(ValueMetric(value, key) for key, value in named.items())]
        self.begun = self.stopping = False

    def before_epoch(self) -> None:
        if self.stopping:  # not in the epoch before, whose row the recorder would lose
            raise CancelFitException

    def before_train(self) -> None:
        if not self.begun:
            self._skipped = self.learn.epoch * len(self.learn.dls.train)  # batches of the epochs before start_epoch
            planned = {"epochs": self.learn.n_epoch, "batches": len(self.learn.dls.train)}
            self.begin(self.learn.model, step=self._skipped, **planned)

    def after_batch(self) -> None:
        if self.learn.training:
            self.measure_after_batch(self.learn.model, **self._now())

    def after_validate(self) -> None:
        if self.begun:  # not in a validation alone
            self.measure_after_epoch(self.learn.model, **self._now())
            self.save(self.directory)

    def after_fit(self) -> None:
        self.learn.metrics, self.begun = self._former, False

    def _now(self) -> dict[str, Any]:
        return {"step": self._skipped + self.learn.train_iter, "epoch": self.learn.epoch}
