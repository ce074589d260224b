"""The recipe of a training run as far as a program can see it, and what has changed in it: a planned change.

A fault does not change the class of the optimiser or the transforms of the training data; a person does. So such a
change is announced by itself, see :meth:`geomonitor.GeometryMonitor.announce`.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.loss import _Loss

_LONGEST = 200
"""Characters of a description that are kept."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def recipe_of(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = (), data: object = None
) -> dict[str, str]:
    """What is used, by name, in a few words each.

    Args:
        model: its dropout rates, its loss modules, how many of its parameters are trained.
        optimizers: their classes.
        data: the training dataset: class, length and ``transform``.

    >>> recipe_of(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1)))
    {'optimizer': '', 'trainable parameters': '9', 'dropout': '0.1', 'loss': '', 'training data': ''}
    """
    modules = list(model.modules())
    rates = Counter(float(module.p) for module in modules if isinstance(module, _DropoutNd))
    losses = [module for module in modules if isinstance(module, _Loss)]
    return {
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in optimizers),
        "trainable parameters": str(sum(p.numel() for p in model.parameters() if p.requires_grad)),
        "dropout": ", ".join(f"{rate:g}" for rate in sorted(rates)),
        "loss": ", ".join(_loss(module) for module in losses),
        "training data": _data(data),
    }


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """What changed, by name, in words; nothing if one of both is not known.

    >>> changes({"optimizer": "SGD", "loss": ""}, {"optimizer": "AdamW", "loss": ""})
    {'optimizer': 'SGD -> AdamW'}
    """
    known = {name: value for name, value in after.items() if value and before.get(name)}
    return {name: f"{before[name]} -> {value}" for name, value in known.items() if value != before[name]}


def _loss(module: nn.Module) -> str:
    smoothing = getattr(module, "label_smoothing", 0.0)
    return type(module).__name__ + (f"(label_smoothing={smoothing:g})" if smoothing else "")


def _data(data: object) -> str:
    if data is None:
        return ""
    parts = [type(data).__name__]
    with contextlib.suppress(TypeError):  # a stream
        parts.append(f"{len(data)} items")  # type: ignore[arg-type]
    for name in ("transform", "transforms"):
        if (transform := getattr(data, name, None)) is not None:
            parts.append(_ADDRESS.sub("", repr(transform)))
            break
    return ", ".join(parts)[:_LONGEST]
