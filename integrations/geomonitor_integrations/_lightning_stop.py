"""The hooks of ``GeometryEarlyStopping`` in both Lightning namespaces."""

from __future__ import annotations

import sys
from typing import Any

from geomonitor.errors import InputError
from geomonitor.features.layers import layer_aliases
from geomonitor.history.records import ALARM
from geomonitor_integrations._lightning_checks import require_namespace
from geomonitor_integrations._lightning_hooks import GeometryHooks

NEVER = sys.maxsize


class StopOnDecline:
    """Ends training on all ranks alike once the geometry of a layer has declined; see ``GeometryEarlyStopping``."""

    def __init__(self, layer: str = "penultimate", *, name: str = "") -> None:
        if not isinstance(layer, str) or not layer or not isinstance(name, str):
            raise InputError(
                f"layer and name are the alias of a layer and the name of a callback; got {layer!r}, {name!r}"
            )
        self.layer = layer
        self.name = name
        self.stopping_reason_message: str | None = None
        self._judged_step: int | None = None
        super().__init__(  # type: ignore[call-arg]
            monitor="/".join(part for part in ("geometry", name, layer, ALARM) if part),
            mode="min",
            divergence_threshold=0.5,  # the alarm is 0 or 1
            patience=NEVER,  # "does not improve" means nothing here
            strict=False,  # no value before the first measurement
            check_finite=False,
            check_on_train_epoch_end=True,
        )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        require_namespace(self, trainer)
        hooks = self._hooks(trainer)
        if stage == "fit" and not hooks:
            named = f" of the name {self.name!r}" if self.name else ""
            raise InputError(
                f"GeometryEarlyStopping needs a GeometryCallback{named} in the same Trainer: add one to callbacks"
            )
        super().setup(trainer, pl_module, stage)  # type: ignore[misc]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        judged = [h.monitor.layers for h in self._hooks(trainer) if h.monitor.panel is not None]
        aliases = [alias for layers in judged for alias in layer_aliases(pl_module, layers)]
        if self.layer not in aliases:
            raise InputError(
                f"no GeometryCallback judges a layer {self.layer!r}, so nothing could ever stop this run: "
                f"GeometryEarlyStopping(layer=...) can watch {aliases or 'none, as no callback has a panel'}"
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        # With every_n_steps an epoch may be the whole run: decide at the measurement, not at the epoch's end. The
        # step is remembered because this callback may stand before the one that measures.
        measured = [
            h.run.last_step for h in self._hooks(trainer) if h.run.every_n_steps and h.run.last_step is not None
        ]
        if measured and max(measured) != self._judged_step and not trainer.should_stop:
            self._judged_step = max(measured)
            self._run_early_stopping_check(trainer)

    def _run_early_stopping_check(self, trainer: Any) -> None:
        stopping_already, reason = trainer.should_stop, self.stopping_reason_message
        super()._run_early_stopping_check(trainer)  # type: ignore[misc]
        if stopping_already:
            self.stopping_reason_message = reason  # not Lightning's words for the same alarm, an epoch's end later
        reasons = [reason for h in self._hooks(trainer) if (reason := h.run.stop_reason(self.layer))]
        if reasons and trainer.should_stop and not stopping_already and trainer.is_global_zero:
            self.stopping_reason_message = reasons[0]
            print(self.stopping_reason_message, file=sys.stderr)

    def _hooks(self, trainer: Any) -> list[GeometryHooks]:
        """The callbacks that measure what this one watches."""
        measuring = [callback for callback in trainer.callbacks if isinstance(callback, GeometryHooks)]
        return [callback for callback in measuring if callback.run.name == self.name]
