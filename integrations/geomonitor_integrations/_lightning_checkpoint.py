"""The hooks of ``GeometryCheckpoint`` in both Lightning namespaces: a translation of calls to ``CheckpointKeeper``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from geomonitor.decide.keeper import CheckpointKeeper
from geomonitor.decide.kept_file import free_name
from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.history.saved import SavedCheckpoint
from geomonitor_integrations._lightning_checks import require_namespace, require_whole_checkpoints
from geomonitor_integrations._lightning_hooks import GeometryHooks
from geomonitor_integrations._lightning_trainer import step_of


class KeepLastHealthy:
    """Keeps the last checkpoint from before a decline beside those of a ``ModelCheckpoint``; see there."""

    dirpath: Any
    save_weights_only: bool

    def __init__(self, *args: Any, restore: bool = False, name: str = "", **kwargs: Any) -> None:
        if not isinstance(name, str):
            raise InputError(f"name is the name of a GeometryCallback; got {name!r}")
        self.keeper = CheckpointKeeper(restore=restore)
        self.name = name
        super().__init__(*args, **kwargs)

    @property
    def last_healthy(self) -> SavedCheckpoint | None:
        """The last checkpoint from before a decline; while nothing declines the newest one. None if there is none."""
        return self.keeper.last_healthy

    @property
    def state_key(self) -> str:
        """Under this key a checkpoint holds the state; with another ``name`` another one."""
        key: str = super().state_key  # type: ignore[misc]
        return f"{key}{{'name': {self.name!r}}}" if self.name else key

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        require_namespace(self, trainer)
        if stage == "fit" and not self._hooks(trainer):
            named = f" of the name {self.name!r}" if self.name else ""
            raise InputError(
                f"GeometryCheckpoint needs a GeometryCallback{named} in the same Trainer: add one to callbacks"
            )
        if stage == "fit" and self.keeper.restore:
            require_whole_checkpoints(trainer)
        super().setup(trainer, pl_module, stage)  # type: ignore[misc]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)  # type: ignore[misc]
        if trainer.fast_dev_run:
            return
        self.keeper.start(self._hooks(trainer)[0].run)
        resumed = trainer.ckpt_path
        if resumed and Path(resumed).exists():  # it may be the newest one, of which its own state cannot know
            self.keeper.saved(resumed, step=step_of(trainer, in_batch=False), epoch=trainer.current_epoch)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)  # type: ignore[misc]
        if trainer.fast_dev_run:
            return
        self.keeper.finish(pl_module)
        if self.keeper.restored is not None and trainer.is_global_zero:
            print(f"geometry: the weights of {self.keeper.restored} were restored", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "keeper": self.keeper.state_dict()}  # type: ignore[misc]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # type: ignore[misc]
        if "keeper" in state_dict:
            self.keeper.load_state_dict(state_dict["keeper"])

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)  # type: ignore[misc]
        self.keeper.saved(filepath, step=step_of(trainer), epoch=trainer.current_epoch)

    def _save_topk_checkpoint(self, trainer: Any, monitor_candidates: dict[str, Any]) -> None:
        """Also save a healthy state that is none of the best by ``monitor``: these may be old when a decline begins."""
        super()._save_topk_checkpoint(trainer, monitor_candidates)  # type: ignore[misc]
        step, epoch = step_of(trainer), trainer.current_epoch
        if not self.keeper.wants(step):
            return
        path = free_name(Path(str(self.dirpath), f"unkept-epoch={epoch}-step={step}.ckpt"))
        path = trainer.strategy.broadcast(path)
        try:
            trainer.save_checkpoint(path, self.save_weights_only)
        except OSError as error:
            if trainer.world_size > 1:  # the other processes wait in save_checkpoint
                raise
            kept = self.last_healthy
            stays = f"{kept} stays the one that is kept" if kept else "none is kept"
            warnings.warn(f"step {step} cannot be saved for a later decline ({error}): {stays}", GeomonitorWarning, 2)
        else:
            self.keeper.saved(path, step=step, epoch=epoch)
        if trainer.is_global_zero:
            path.unlink(missing_ok=True)  # the keeper's link holds the content

    def _hooks(self, trainer: Any) -> list[GeometryHooks]:
        """The callbacks whose measurements decide what is healthy."""
        measuring = [callback for callback in trainer.callbacks if isinstance(callback, GeometryHooks)]
        return [callback for callback in measuring if callback.run.name == self.name]
