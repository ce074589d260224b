"""A callback that keeps the last checkpoint of a transformers ``Trainer`` from before a decline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback

from geomonitor.adapter import Adapter, caller
from geomonitor.decide.checkpoints import load_checkpoint, load_weights
from geomonitor.decide.keeper import CheckpointKeeper
from geomonitor.errors import InputError
from geomonitor.history.saved import SavedCheckpoint

STATE_FILE = "geometry_checkpoint.json"
"""In each checkpoint, for ``resume_from_checkpoint``."""


class GeometryCheckpoint(TrainerCallback):  # type: ignore[misc]
    """Keeps the newest checkpoint that was healthy as ``healthy-...``, whatever ``save_total_limit`` deletes.

    It follows the ``GeometryCallback`` of the same Trainer. A checkpoint is healthy if the measurement at its step, or
    the first one after it, finds nothing declining; the weights of safetensors files can be restored.

    Args:
        restore: load what was kept at the end of a run that is declining, also if it was stopped.
        name: of the ``GeometryCallback``, if it has one.

    Raises:
        InputError: before the first batch: no ``GeometryCallback`` of that name, or nothing is ever saved.
    """

    def __init__(self, *, restore: bool = False, name: str = "") -> None:
        self.keeper, self.name = CheckpointKeeper(restore=restore), name

    @property
    def last_healthy(self) -> SavedCheckpoint | None:
        """The last checkpoint from before a decline; while nothing declines the newest one. None if there is none."""
        return self.keeper.last_healthy

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        call = caller(Trainer)
        adapters = (each for each in call["self"].callback_handler.callbacks if isinstance(each, Adapter))
        found = next((each for each in adapters if each.monitored.name == self.name), None)
        if found is None:
            named = f" of the name {self.name!r}" if self.name else ""
            raise InputError(f"GeometryCheckpoint needs a GeometryCallback{named} in the same Trainer, before it")
        if args.save_strategy == "no":
            raise InputError('GeometryCheckpoint keeps what the Trainer saves: save_strategy="no" saves nothing')
        self._folder = call["self"]._get_output_dir(call["trial"])
        resumed = call["resume_from_checkpoint"]
        if isinstance(resumed, str) and Path(resumed, STATE_FILE).is_file():
            self.keeper.load_state_dict(json.loads(Path(resumed, STATE_FILE).read_text(encoding="utf-8")))
        self.keeper.start(found.monitored)
        if isinstance(resumed, str) and Path(resumed).is_dir():  # of which its own state cannot know
            self.keeper.saved(resumed, step=state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        saved = Path(self._folder, f"checkpoint-{state.global_step}")
        self.keeper.saved(saved, step=state.global_step)
        if state.is_world_process_zero and saved.is_dir():
            Path(saved, STATE_FILE).write_text(json.dumps(self.keeper.state_dict()), encoding="utf-8")

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        self.keeper.finish(load=lambda folder: _load(model, folder))
        if self.keeper.restored is not None and state.is_world_process_zero:
            print(f"geometry: the weights of {self.keeper.restored} were restored", file=sys.stderr)


def _load(model: nn.Module, folder: Path) -> None:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise InputError(f"{folder} has no model*.safetensors: only these are restored")
    parts = [load_checkpoint(file) for file in files]
    weights = {name: tensor for part in parts for name, tensor in part.weights.items()}
    tied = getattr(model, "_tied_weights_keys", None) or ()
    for name, tensor in model.state_dict().items():  # a tied weight is in the file once
        if name not in weights and name in tied:
            weights[name] = tensor
    load_weights(model, parts[0]._replace(weights=weights))
