"""What a Trainer has to be like for the callbacks to work in it."""

from __future__ import annotations

from typing import Any

import torch

from geomonitor.errors import InputError


def first_loader(trainer: Any) -> Any:
    """The first validation loader of however many there are."""
    loaders = trainer.val_dataloaders
    while isinstance(loaders, (list, tuple, dict)):
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders))
    return loaders


def shuffles(loader: Any) -> bool:
    """Whether a loader gives its samples in another order each time, as far as its sampler shows."""
    sampler = getattr(loader, "sampler", None)
    return isinstance(sampler, torch.utils.data.RandomSampler) or bool(getattr(sampler, "shuffle", False))


def require_ordered_validation(trainer: Any, probe: Any) -> None:
    """Refuse a validation from which a ``ValidationProbe`` cannot take the same points each time.

    Raises:
        InputError: no validation loop; batches that hold those of several loaders, of which none is the first; a loader
            that shuffles while the position of a point is its name.
    """
    if not trainer.enable_validation:
        raise InputError("a ValidationProbe needs a validation loop: give fit a validation loader, or use a ProbeSet")
    if probe.labels is None and _combines(trainer.fit_loop.epoch_loop.val_loop):
        raise InputError(
            "the validation loaders are combined, so that each batch holds a batch of every loader, and a "
            "ValidationProbe cannot read labels from it: give the loaders as a list, or as CombinedLoader(loaders, "
            "'sequential'), whose first one is read; or give ValidationProbe(labels=function of the batch) for a "
            "validation_step that runs the model once on the batch of one loader; or use a ProbeSet"
        )
    if probe.ids is None and shuffles(first_loader(trainer)):
        raise InputError(
            "the validation loader shuffles, so the position of a point does not name it: use shuffle=False, "
            "or give ValidationProbe(ids=function of the batch)"
        )


def _combines(loop: Any) -> bool:
    """Whether each batch of a validation loop holds a batch of every loader."""
    # Before the first validation the loop has not taken its loaders yet.
    taken = getattr(loop, "_combined_loader", None)
    loaders = getattr(loop._data_source, "instance", None) if taken is None else taken
    return getattr(loaders, "_mode", "sequential") != "sequential"


def require_whole_model(trainer: Any) -> None:
    """Refuse tensor parallelism: its processes have to see the same points, and each would get points of its own."""
    mesh = getattr(trainer.strategy, "device_mesh", None)
    names = getattr(mesh, "mesh_dim_names", None) or ()
    if mesh is not None and "tensor_parallel" in names and mesh["tensor_parallel"].size() > 1:
        raise InputError(
            "the geometry cannot be measured under tensor parallelism: use data parallelism (DDP, FSDP2), or measure "
            "a saved checkpoint with GeometryMonitor"
        )


def require_namespace(callback: Any, trainer: Any) -> None:
    """Refuse a Trainer of the other namespace: it would pass over our early stopping without a word."""
    ours = {base.__module__.split(".")[0] for base in type(callback).__mro__} & {"lightning", "pytorch_lightning"}
    theirs = type(trainer).__module__.split(".")[0]
    if theirs in {"lightning", "pytorch_lightning"} and theirs not in ours:
        raise InputError(
            f"this Trainer comes from {theirs}: import {type(callback).__name__} from geomonitor_integrations.{theirs}"
        )


def require_whole_checkpoints(trainer: Any) -> None:
    """Refuse a strategy that saves folders of shards, which cannot be restored safely.

    Raises:
        InputError: such a strategy, with what to do.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    ways = {
        "_save_distributed_checkpoint": "ModelParallelStrategy(save_distributed_checkpoint=False)",
        "_state_dict_type": 'FSDPStrategy(state_dict_type="full")',
    }
    way = next((way for flag, way in ways.items() if getattr(strategy, flag, None) in (True, "sharded")), None)
    if way is not None or "DeepSpeed" in name:
        raise InputError(
            f"GeometryCheckpoint(restore=True) cannot restore the folders of shards that {name} saves: give "
            f"{f'{way}, or ' if way else ''}restore=False, and go on from last_healthy with fit(ckpt_path=...)"
        )
