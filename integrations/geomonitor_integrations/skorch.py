"""A callback for the nets of skorch."""

from __future__ import annotations

from typing import Any

from geomonitor.adapter import Adapter, Probe, require_one_of_a_name

try:
    from skorch.callbacks import Callback
except ImportError as error:
    raise ImportError('skorch is missing: pip install "geomonitor[skorch]"') from error

__all__ = ["GeometryCallback"]


class GeometryCallback(Callback):  # type: ignore[misc]
    """Measures the geometry of the representation while a net is fitted, and records it in ``net.history``.

    ``net.history[:, "geometry/<layer>/<marker>"]`` has the markers and the alarm of each epoch that was measured;
    ``EarlyStopping(monitor=key)`` sees it in any order of the callbacks, and so does a ``Checkpoint`` with a function
    as ``monitor``. ``fit`` starts a new series, ``partial_fit`` goes on, and ``sklearn.clone`` copies the options;
    ``callback.adapter_.monitor`` has the series. With a ``directory``, ``geometry.csv`` is written there, and
    ``geometry.pt`` after each epoch: a net that has loaded its history (``LoadInitState``) goes on from it.

    Args:
        probe: as in :class:`geomonitor.adapter.Adapter`.
        options: as in :class:`geomonitor.adapter.Adapter`.

    >>> import torch, geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    >>> callback = GeometryCallback(gm.ProbeSet.from_dataset(data, per_class=20), every_n_epochs=2)
    """

    def __init__(self, probe: Probe, **options: Any) -> None:
        self.probe_, self.options_ = probe, options
        self.initialize()  # checks the options

    def initialize(self) -> GeometryCallback:
        self.adapter_ = Adapter(self.probe_, **self.options_)
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"probe": self.probe_, **self.options_}

    def set_params(self, **params: Any) -> GeometryCallback:
        self.__init__(**self.get_params() | params)  # type: ignore[misc]
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        require_one_of_a_name([each.adapter_ for _, each in net.callbacks_ if isinstance(each, GeometryCallback)])
        net.callbacks_.sort(key=lambda named: named[1] is not self)  # in front, so that all others see the values
        self.adapter_.begun = self.adapter_.stopping = False

    def on_epoch_begin(self, net: Any, **_: Any) -> None:
        if self.adapter_.stopping:
            net.history.pop()  # the epoch that does not come
            raise KeyboardInterrupt  # as skorch's own EarlyStopping does
        # Not in on_train_begin, in which LoadInitState loads.
        self.adapter_.begin(net.module_, step=_now(net)["step"], epochs=len(net.history) - 1 + net.max_epochs)

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **_: Any) -> None:
        if training:
            self._record(net, self.adapter_.measure_after_batch(net.module_, **_now(net)))

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        self._record(net, self.adapter_.measure_after_epoch(net.module_, **_now(net)))
        self.adapter_.save(self.adapter_.directory)

    def _record(self, net: Any, values: dict[str, float]) -> None:
        net.history[-1].update({key: values[key] for key in self.adapter_.columns(net.module_) if key in values})


def _now(net: Any) -> dict[str, Any]:
    step = sum(row.get("train_batch_count", len(row["batches"])) for row in net.history)
    return {"step": step, "epoch": len(net.history) - 1, "optimizers": [net.optimizer_]}
