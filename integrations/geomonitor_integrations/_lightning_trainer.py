"""What a Trainer of Lightning knows: its step, its data, its planned length, its loggers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from geomonitor.history.runs import RUNS_FOLDER


def training_data(trainer: Any) -> Any:
    """The training dataset; None if there are several, or none is loaded now."""
    try:
        return getattr(trainer.train_dataloader, "dataset", None)
    except AssertionError:
        return None


def step_of(trainer: Any, *, in_batch: bool = True) -> int:
    """Batches that have stepped, the axis of all other curves; Lightning adds the current one after its hooks.

    ``global_step`` is the same number for one optimiser that Lightning steps. It counts each of several optimisers, and
    stands still where ``training_step`` calls optimisers of its own.
    """
    if trainer.lightning_module.automatic_optimization and trainer.optimizers:
        return int(trainer.global_step)
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped) + in_batch


def planned(trainer: Any) -> dict[str, Any]:
    """Epochs and optimiser steps of the whole run, as far as they are known."""
    steps = trainer.estimated_stepping_batches  # infinite if nothing limits the run
    epochs = trainer.max_epochs
    return {
        "epochs": epochs if epochs is not None and epochs > 0 else None,
        "steps": int(steps) if 0 < steps < float("inf") else None,
    }


def place_of(trainer: Any, directory: Any) -> dict[str, Any]:
    """The directory and the id of a run, as ``MonitoredRun.start`` takes them; every rank has to call this.

    The first logger that has an id of its own (W&B, MLflow) gives it. Without a directory the files go to the one of
    the first logger: its ``log_dir``, else that in which ``ModelCheckpoint`` makes ``checkpoints``. Without a logger,
    to ``default_root_dir`` if it was given, else to a folder of the run in ``geomonitor_runs``.
    """
    own = [logger.version for logger in trainer.loggers if logger.log_dir is None]
    run_id = next((version for version in own if isinstance(version, str) and version), None)
    folder, own_folder = directory or _folder_of_logger(trainer), False
    if folder is None:
        root = Path((trainer.loggers and trainer.loggers[0].save_dir) or trainer.default_root_dir)
        own_folder = bool(trainer.loggers) or root.resolve() == Path.cwd()
        folder = root / RUNS_FOLDER if own_folder else root
    run_id = None if run_id is None else re.sub(r"^\W|[^\w.-]", "_", run_id)[:100]
    place = {"directory": str(folder), "run_id": run_id, "own_folder": own_folder}
    return dict(trainer.strategy.broadcast(place))  # other ranks do not know the id


def _folder_of_logger(trainer: Any) -> Path | None:
    """The directory that the first logger has for this run alone; None if there is none."""
    first = trainer.loggers[0] if trainer.loggers else None
    if first is None or first.log_dir is not None:
        return None if first is None else Path(first.log_dir)
    if first.version in (None, ""):
        return None
    version = first.version if isinstance(first.version, str) else f"version_{first.version}"
    return Path(first.save_dir or trainer.default_root_dir, str(first.name or ""), version)


def to_loggers(trainer: Any, values: dict[str, float]) -> None:
    """Straight to the loggers: ``log(on_step=True)`` drops what is not at a multiple of ``log_every_n_steps``."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def fits(trainer: Any) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fast_dev_run


def log_everywhere(trainer: Any, pl_module: Any, values: dict[str, float], **how: Any) -> None:
    """On every rank: values logged on rank 0 alone are hidden from EarlyStopping and the like elsewhere."""
    if values and not trainer.barebones:
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1, batch_size=1, **how)
