"""Saved checkpoints: the weights, and the step of training at which they were saved. Never runs code from a file."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomonitor.errors import InputError

# Keys under which a training script keeps the weights in what it saves.
_WEIGHTS_UNDER = ("state_dict", "model_state_dict", "model", "weights", "net")
_STEP_NAMES = ("global_step", "step", "iteration", "iter")
# epoch=3-step=96.ckpt, step_1000.pt, checkpoint-500/model.safetensors, model.ep3.pt
_STEP_IN_NAME = re.compile(r"(?<![a-z])(?:step|iter|iteration|checkpoint|ckpt)s?[=_-]?(\d+)", re.IGNORECASE)
_EPOCH_IN_NAME = re.compile(r"(?<![a-z])(?:epoch|ep)[=_-]?(\d+)", re.IGNORECASE)
# What torch.compile, DDP and torch's averaging write before the names of the plain model.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module)\.")
_SHOWN_NAMES = 3
_LARGEST_COUNT = 2**63 - 1


class Checkpoint(NamedTuple):
    """Weights of a model at one step of training."""

    path: Path
    weights: dict[str, Tensor]
    """by name, on the CPU"""
    step: int | None
    """optimiser steps; None if neither the content nor the name of the file has it"""
    epoch: int | None


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a Lightning ``.ckpt``, a ``state_dict`` saved by ``torch.save``, or a ``.safetensors`` file.

    Only tensors and plain Python are read (``weights_only=True``): a file cannot run code. Step and epoch come from
    the content (``global_step``, ``step``, ``epoch``; metadata of a ``.safetensors`` file), otherwise from names such
    as ``epoch=3-step=96.ckpt``, ``step_1000.pt``, ``checkpoint-500/model.safetensors``.

    Args:
        path: the file.

    Returns:
        Weights, step and epoch.

    Raises:
        InputError: no such file, a damaged one, one that holds more than plain data, or no weights in it.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, as FSDP, DeepSpeed and torch.distributed.checkpoint save shards: these are pickled, "
            "and loading them could run code. Save one file (FSDP: the full state_dict; Lightning: "
            "save_distributed_checkpoint=False), or load it by what has saved it"
        )
    if not path.is_file():
        raise InputError(f"{path} is no checkpoint file: give .ckpt, .pt or .safetensors files")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    weights, about = _weights(content, path)
    near_name = "/".join(path.parts[-2:])
    step = next((found for name in _STEP_NAMES if (found := _count(about.get(name))) is not None), None)
    epoch = _count(about.get("epoch"))
    return Checkpoint(
        path,
        weights,
        _in_name(_STEP_IN_NAME, near_name) if step is None else step,
        _in_name(_EPOCH_IN_NAME, near_name) if epoch is None else epoch,
    )


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the weights of a checkpoint into a model, all of them or none.

    The checkpoint may hold the model under a prefix (the ``model.`` of a ``LightningModule``, DDP's ``module.``).

    Args:
        model: of the architecture that was saved.
        checkpoint: what to put in.

    Raises:
        InputError: names or shapes that do not fit, with the first few of them.
    """
    wanted = model.state_dict()
    weights = _without_prefix(checkpoint.weights, wanted)
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    misfits = [
        f"{name} {_shape(weights[name])} in the file, {_shape(wanted[name])} in the model"
        for name in wanted.keys() & weights.keys()
        if isinstance(wanted[name], Tensor) and _shape(weights[name]) != _shape(wanted[name])
    ]
    kinds = [
        f"{name} {getattr(weights[name], 'dtype', None)} in the file, {wanted[name].dtype} in the model"
        for name in wanted.keys() & weights.keys()
        if isinstance(wanted[name], Tensor) and _kind(weights[name]) != _kind(wanted[name])
    ]
    found = {
        "missing in the file": missing,
        "unknown to the model": unknown,
        "of another shape": sorted(misfits),
        "of another kind of numbers": sorted(kinds),
    }
    problems = [f"{what}: {_few(names)}" for what, names in found.items() if names]
    if problems:
        raise InputError(
            f"{checkpoint.path} does not fit the model ({'; '.join(problems)}): the factory must build what was saved"
        )
    try:
        if any(hasattr(value, "full_tensor") for value in wanted.values()):  # FSDP2: each process takes its part
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            set_model_state_dict(model, {**weights}, options=StateDictOptions(full_state_dict=True))
        else:
            model.load_state_dict(weights)
    except Exception as error:  # whatever a tensor of a strange layout makes torch raise
        raise InputError(f"{checkpoint.path} cannot be loaded into the model: {error}") from error


def _pickled(path: Path) -> Any:
    try:
        # Mapped, not read: looking up the step of a large file costs next to nothing. Old formats cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)|type(?:: | )([\w.]+)", str(error))
        found = f" ({named.group(1) or named.group(2)})" if named else ""
        raise InputError(
            f"{path} is damaged or holds more than tensors and plain Python{found}, and loading that could run code: "
            "save the weights alone, torch.save(model.state_dict(), path)"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a damaged file makes the unpickler raise almost anything
        raise InputError(f"{path} cannot be read as a checkpoint, it may be cut off or damaged: {error}") from error


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(f'{path} needs safetensors: pip install "geomonitor[cli]"') from error
    try:
        with safe_open(path, framework="pt") as file:
            return {"state_dict": {name: file.get_tensor(name) for name in file.keys()}, **(file.metadata() or {})}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # SafetensorError, and what torch raises for a dtype that it does not know
        raise InputError(f"{path} cannot be read as a safetensors file, it may be cut off: {error}") from error


def _weights(content: Any, path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The weights in what was saved, and what stands beside them."""
    if isinstance(content, Mapping):
        for name in _WEIGHTS_UNDER:
            inner = content.get(name)
            if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
                return _tensors(inner, path), content
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return _tensors(content, path), {}
    raise InputError(
        f"{path} holds no weights: expected a state_dict, or one under {', '.join(_WEIGHTS_UNDER)}; "
        f"found {_few(map(str, content)) if isinstance(content, Mapping) else type(content).__name__}"
    )


def _tensors(found: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The weights, if that is what they are; what a module keeps as its extra state may be something else."""
    odd = [name for name, value in found.items() if not isinstance(name, str) or not _is_weight(name, value)]
    if odd:
        raise InputError(f"{path} holds weights that are no plain tensors: {_few(map(repr, odd))}")
    return dict(found)


def _is_weight(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) or name.endswith("_extra_state")


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _kind(value: Any) -> tuple[bool, bool]:
    """Whether numbers are real or complex floats, or neither: half and double precision are of one kind."""
    return (value.is_floating_point(), value.is_complex()) if isinstance(value, Tensor) else (False, False)


def _without_prefix(weights: dict[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """The part of the weights that is the model: as it is, without wrappers, or under a prefix."""
    plain = {_WRAPPERS.sub("", name): value for name, value in weights.items()}
    first = next(iter(wanted), "")
    for candidate in (weights, plain):
        if wanted.keys() == candidate.keys():
            return candidate
        prefixes = [name[: -len(first)] for name in candidate if name.endswith(f".{first}")]
        whole = [prefix for prefix in prefixes if all(prefix + name in candidate for name in wanted)]
        if len(whole) == 1:
            return {name: candidate[whole[0] + name] for name in wanted}
    return weights


def _count(value: Any) -> int | None:
    """A number of steps or epochs; None for what cannot be one."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if 0 <= number <= _LARGEST_COUNT else None


def _in_name(pattern: re.Pattern[str], name: str) -> int | None:
    found = pattern.findall(name)
    return _count(found[-1]) if found else None


def _few(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN_NAMES]) + (
        f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    )
