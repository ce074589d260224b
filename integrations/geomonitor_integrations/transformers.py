"""A callback for the ``Trainer`` of Hugging Face transformers."""

from __future__ import annotations

import math
from typing import Any

from geomonitor.adapter import Adapter, caller, first_in, require_one_of_a_name

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError('transformers is missing: pip install "geomonitor[transformers]"') from error

from geomonitor_integrations._transformers_checkpoint import GeometryCheckpoint

__all__ = ["GeometryCallback", "GeometryCheckpoint"]


class GeometryCallback(Adapter, TrainerCallback):  # type: ignore[misc]
    """Measures the geometry of the representation while a ``Trainer`` trains, and logs it.

    With an ``eval_strategy`` each evaluation is measured (or those that lie ``every_n_epochs`` or ``every_n_steps``
    apart), else each epoch; ``every_n_steps`` also measures between evaluations. The metrics of an evaluation get
    ``eval_geometry/<layer>/<marker>``, before any other callback sees them: ``metric_for_best_model=
    "geometry/penultimate/dimension"`` selects the best model by it and is the metric of ``EarlyStoppingCallback``. Of
    several evaluation sets the first one gets the keys. Measurements without an evaluation are logged as
    ``geometry/<layer>/<marker>`` with the training loss.

    All records are in ``geometry.csv`` in the ``output_dir`` (or ``directory``); the state is in ``geometry.pt`` in
    each checkpoint, from which ``resume_from_checkpoint`` goes on. Every ``train()``, and every trial of a
    hyperparameter search, is a new series. The model is measured in the dtype of its weights, without the autocast of
    ``bf16=True``. After the training nothing is measured.

    Options: see :class:`geomonitor.adapter.Adapter`.

    Raises:
        InputError: before the first batch: a layer that does not exist, two callbacks of a name, a
            ``metric_for_best_model`` of the geometry that is not measured or never evaluated.

    >>> import torch, geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
    >>> callback = GeometryCallback(gm.ProbeSet.from_dataset(data, per_class=20), stop_on_decline=True)
    """

    _folder: str | None = None  # of the run; None before the first training
    _over = False  # the best model has replaced the one that was measured last
    _unlogged: dict[str, float] | None = None
    _evaluated = (-1, "")  # step and name of the evaluation that got the latest keys

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        first_in(caller(Trainer)["self"].callback_handler.callbacks, self)  # else loggers would log before it measures

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        require_one_of_a_name((call := caller(Trainer))["self"].callback_handler.callbacks)
        self.on_init_end(args, state, control)  # a callback may be added after that
        self.require_measured(model, args.metric_for_best_model, args.eval_strategy != "no", prefix="eval_")
        self._folder, self._over = call["self"]._get_output_dir(call["trial"]), False
        self.resume(call["resume_from_checkpoint"], state.global_step)
        planned = {"step": state.global_step, "epochs": state.num_train_epochs, "steps": state.max_steps}
        self._unlogged = self.start(model, self.directory or self._folder, **planned)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        self.monitored.look_at_gradients(model.parameters(), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **handled: Any) -> None:
        if self.monitored.due_after_batch(state.global_step):
            self._measure(state, control, log=True, **handled)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **handled: Any) -> None:
        last = _epoch(state) + 1 == state.num_train_epochs
        if args.eval_strategy == "no" and self.monitored.due_after_epoch(_epoch(state), last=last):
            self._measure(state, control, log=True, **handled)

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **handled: Any) -> None:
        if (evaluation := next((key for key in logs if key.endswith("_runtime")), "")).startswith("eval"):
            step, first = self._evaluated
            if self._over or (step == state.global_step and evaluation != first):  # several evaluation sets
                return
            self._evaluated = (state.global_step, evaluation)
            if self._folder is None and self.monitored.last_step is None:
                self.monitored.start(handled["model"])  # evaluate() before train(), which starts a new series
            if self.monitored.due_after_validation(state.global_step, _epoch(state)):
                self._measure(state, control, **handled)
            self._unlogged = {f"eval_{key}": value for key, value in self.monitored.latest().items()}
        # Trainer.evaluate returns this dict, and all callbacks after this one get it.
        logs |= self._unlogged or {}
        state.log_history[-1] |= self._unlogged or {}
        self._unlogged = None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.save(f"{self._folder}/checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._over = args.load_best_model_at_end
        self.monitored.finish()

    def _measure(self, state: Any, control: Any, *, model: Any, optimizer: Any, log: bool = False, **_: Any) -> None:
        how = {"step": state.global_step, "epoch": _epoch(state), "optimizers": [optimizer] if optimizer else []}
        self._unlogged = self.measure(model, **how)
        control.should_log |= log
        control.should_training_stop |= self.stopping


def _epoch(state: Any) -> int:
    return max(math.ceil(state.epoch or 0) - 1, 0)  # the Trainer counts parts of epochs from 0 on
