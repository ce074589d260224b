"""What else a forward pass gives: the logits in what the model returned, and the linear head that a layer feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomonitor.features.layers import Layer, plain_modules


class Head(NamedTuple):
    """The rows of a linear head for the probe's classes; ``weight`` is None if there is no such head."""

    weight: Tensor | None = None
    """``(P, N)``"""
    bias: Tensor | None = None
    """``(P,)``"""


def logits_in(output: Any, labels: Sequence[int]) -> Tensor | None:
    """The logits in what a model returned, if there are any whose columns are the labels.

    Args:
        output: a tensor, an object or mapping with ``logits``, or a tuple or list that starts with a tensor.
        labels: labels of the data; each must be a column.

    Returns:
        ``(B, C)``, at least two columns; None if there are no such logits.

    >>> logits_in({"logits": torch.zeros(2, 3)}, labels=[0, 2]).shape
    torch.Size([2, 3])
    >>> logits_in(torch.zeros(2, 3), labels=[0, 3]) is None
    True
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        found = output[0] if output else None
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if not isinstance(found, Tensor) or found.ndim != 2 or not found.is_floating_point() or found.shape[1] < 2:
        return None
    return found if min(labels) >= 0 and max(labels) < found.shape[1] else None


def head_of(model: nn.Module, layer: Layer, labels: Sequence[int]) -> Head:
    """The head behind a layer: the layer is the input of an ``nn.Linear`` that has one row for each label.

    Weights that are spread over processes as ``DTensor`` (FSDP2) are gathered, so all processes have to call this;
    weights that FSDP1 has flattened give no head.
    """
    module = plain_modules(model)[layer.path]
    if layer.side != "input" or not isinstance(module, nn.Linear):
        return Head()
    if module.weight.shape != (module.out_features, module.in_features):
        return Head()
    if min(labels) < 0 or max(labels) >= module.out_features:
        return Head()
    weight, bias = _gathered(module.weight), None if module.bias is None else _gathered(module.bias)
    rows = torch.tensor(labels, device=weight.device)
    return Head(weight[rows], None if bias is None else bias[rows])


def _gathered(parameter: Tensor) -> Tensor:
    with torch.no_grad():
        whole: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter.detach()
        return whole
