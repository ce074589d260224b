"""What a Trainer of Lightning knows: its step, its data, its planned length, its loggers."""

from __future__ import annotations

from typing import Any


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


def planned(trainer: Any) -> dict[str, int | None]:
    """Epochs and optimiser steps of the whole run, as far as they are known."""
    steps = trainer.estimated_stepping_batches  # infinite if nothing limits the run
    epochs = trainer.max_epochs
    return {
        "epochs": epochs if epochs is not None and epochs > 0 else None,
        "steps": int(steps) if 0 < steps < float("inf") else None,
    }


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
