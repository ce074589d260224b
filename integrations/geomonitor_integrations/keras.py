"""A callback for ``fit`` of Keras 3 on torch."""

from __future__ import annotations

from geomonitor.adapter import Adapter, caller, first_in, require_one_of_a_name
from geomonitor.errors import InputError

try:
    import keras
    from keras.src.callbacks.callback_list import CallbackList
except ImportError as error:
    raise ImportError('keras is missing: pip install "geomonitor[keras]"') from error
if keras.backend.backend() != "torch":
    raise InputError(
        f"Keras runs on {keras.backend.backend()}, and geomonitor measures models of torch: set KERAS_BACKEND=torch "
        "before keras is imported"
    )

from geomonitor_integrations._keras_layers import KerasLayers

__all__ = ["GeometryCallback"]


class GeometryCallback(Adapter, keras.callbacks.Callback):  # type: ignore[misc]
    """Measures the geometry of the representation in ``model.fit``, and puts it into ``logs``.

    ``EarlyStopping``, ``ModelCheckpoint``, ``History`` and all others find ``geometry/<layer>/<marker>`` in the logs of
    each epoch, in any order of the callbacks; of an epoch without a measurement the latest one. Layers have the names
    of ``get_layer``; ``"penultimate"`` is the input of the last ``Dense``. Functional, Sequential and subclassed
    models are measured. Steps are ``optimizer.iterations``. With a ``directory``, ``geometry.csv`` is written there,
    and ``geometry.pt`` after each epoch, from which a model goes on whose optimiser was restored (``load_model``,
    ``BackupAndRestore``). Options: see :class:`geomonitor.adapter.Adapter`.

    >>> import torch, geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    >>> callback = GeometryCallback(gm.ProbeSet.from_dataset(data, per_class=20), every_n_epochs=2)
    """

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        callbacks = caller(CallbackList)["self"].callbacks
        require_one_of_a_name(callbacks)
        first_in(callbacks, self)
        self.begun = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch
        self._layers = KerasLayers(self.model)
        # Not in on_train_begin, in which BackupAndRestore loads.
        epochs, batches = map(self.params.get, ("epochs", "steps"))
        self.begin(self._layers, step=int(self.model.optimizer.iterations), epochs=epochs, batches=batches)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.measure_after_batch(self._layers, step=int(self.model.optimizer.iterations), epoch=self._epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        step, last = int(self.model.optimizer.iterations), epoch + 1 == self.params.get("epochs")
        self.measure_after_epoch(self._layers, step=step, epoch=epoch, last=last)
        (logs if logs is not None else {}).update(self.monitored.latest())
        self.model.stop_training |= self.stopping
        self.save(self.directory)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self.monitored.finish()
