"""A handler for the ``Engine`` of PyTorch-Ignite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from geomonitor.adapter import Adapter, require_one_of_a_name
from geomonitor.features.layers import layer_aliases

try:
    from ignite.engine import Engine, Events
except ImportError as error:
    raise ImportError('ignite is missing: pip install "geomonitor[ignite]"') from error

__all__ = ["GeometryHandler"]


class GeometryHandler(Adapter):
    """Measures the geometry of the representation while a trainer runs, and puts it into ``trainer.state.metrics``.

    It measures at the last iteration of an epoch, so that all handlers of ``EPOCH_COMPLETED`` (loggers,
    ``Checkpoint``, ``EarlyStopping``) find ``trainer.state.metrics["geometry/<layer>/<marker>"]``, in whatever order
    they were attached; ``Checkpoint.get_default_score_fn(key)`` selects the best model by it. An iteration counts as a
    step. ``Checkpoint`` saves and ``Checkpoint.load_objects`` restores the handler like any object with a
    ``state_dict``. ``geometry.csv`` is written if a ``directory`` is given. Options: see
    :class:`geomonitor.adapter.Adapter`.

    >>> import torch, geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    >>> model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> trainer = Engine(lambda engine, batch: None)
    >>> handler = GeometryHandler(gm.ProbeSet.from_dataset(data, per_class=20))
    >>> handler.attach(trainer, model)
    >>> state = trainer.run([0], max_epochs=2)
    >>> "geometry/penultimate/dimension" in state.metrics
    True
    """

    def attach(self, trainer: Engine, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        """Measure a model while a trainer trains it.

        Args:
            trainer: the engine that trains, not one that evaluates.
            model: that it trains.
            optimizers: of the model; learning rate and weight decay explain an alarm.

        Raises:
            InputError: a layer that does not exist; a second handler of the name.
        """
        layer_aliases(model, self.monitor.layers)
        handlers = [getattr(handler, "__self__", None) for handler, *_ in trainer._event_handlers[Events.STARTED]]
        require_one_of_a_name([*handlers, self])
        self._model, self._optimizers = model, list(optimizers)
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        trainer.add_event_handler(Events.COMPLETED, self.monitored.finish)

    def _start(self, trainer: Engine) -> None:
        step, epochs, length = trainer.state.iteration, trainer.state.max_epochs, trainer.state.epoch_length
        steps = epochs * length if epochs and length else None
        self.start(self._model, self.directory, step=step, epochs=epochs, steps=steps, optimizers=self._optimizers)
        trainer.state.metrics.update(self.monitored.latest())

    def _after_iteration(self, trainer: Engine) -> None:
        trainer.state.metrics.update(self.measure_after_batch(self._model, **self._now(trainer)))
        if trainer.state.iteration % trainer.state.epoch_length == 0:
            self._measure_epoch(trainer)

    def _after_epoch(self, trainer: Engine) -> None:
        self._measure_epoch(trainer)  # of an epoch that was terminated
        if self.stopping:  # not in the last iteration, after which no handler would see this epoch
            trainer.terminate()

    def _measure_epoch(self, trainer: Engine) -> None:
        last = trainer.state.epoch == trainer.state.max_epochs
        trainer.state.metrics.update(self.measure_after_epoch(self._model, last=last, **self._now(trainer)))

    def _now(self, trainer: Engine) -> dict[str, Any]:
        return {"step": trainer.state.iteration, "epoch": trainer.state.epoch - 1, "optimizers": self._optimizers}
