"""What else a forward pass gives: the logits in what the model returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def outputs_of(output: Any) -> dict[str, Tensor]:
    """The floating tensors ``(B, ...)`` that a model returned, by field, key or position; ``""`` for a lone one.

    Of an object or mapping that has ``logits`` these alone.

    >>> import torch
    >>> list(outputs_of((torch.zeros(2, 3), None, torch.zeros(2, 5)))), list(outputs_of({"logits": torch.zeros(2, 3)}))
    (['0', '2'], ['logits'])
    """
    found: dict[str, Any] = {}
    if isinstance(output, Tensor):
        found = {"": output}
    elif isinstance(output, Mapping):
        found = {str(name): value for name, value in output.items()}
    elif hasattr(output, "logits"):
        found = {"logits": output.logits}
    elif isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", range(len(output)))
        found = {str(name): value for name, value in zip(names, output, strict=True)}
    elif not isinstance(output, nn.Module) and hasattr(output, "__dict__"):
        found = dict(vars(output))
    found = {"logits": found["logits"]} if found.get("logits") is not None else found
    several = found.items()
    return {n: v for n, v in several if isinstance(v, Tensor) and v.ndim >= 2 and v.is_floating_point()}


def logits_in(output: Any, labels: Sequence[int], place: str | None = None) -> Tensor | None:
    """The logits in what a model returned, if there are any whose columns are the labels.

    Args:
        output: a tensor, an object or mapping with ``logits``, or a tuple or list of tensors: of several, the one with
            as many columns as there are classes, ``max(labels) + 1``, or else the first.
        labels: labels of the data; each must be a column.
        place: the one of :func:`outputs_of` to take, if it is known; of a mapping without ``logits`` it counts if it
            has as many columns as there are classes.

    Returns:
        ``(B, C)``, at least two columns; None if there are no such logits, or several tensors fit equally well.

    >>> import torch
    >>> logits_in({"logits": torch.zeros(2, 3)}, labels=[0, 2]).shape
    torch.Size([2, 3])
    >>> logits_in((torch.zeros(2, 8), torch.zeros(2, 4)), labels=[0, 3]).shape
    torch.Size([2, 4])
    >>> logits_in(torch.zeros(2, 3), labels=[0, 3]) is None
    True
    """
    found = outputs_of(output)
    by_name = not isinstance(output, Mapping) or "logits" in found
    if place is None and not by_name:
        return None
    found = found if place is None else {name: tensor for name, tensor in found.items() if name == place}
    flat = [tensor for tensor in found.values() if tensor.ndim == 2 and tensor.shape[1] > max(1, *labels)]
    exact = [tensor for tensor in flat if tensor.shape[1] == max(labels) + 1]
    chosen = exact or (flat[:1] if by_name else [])
    return chosen[0] if len(chosen) == 1 and min(labels) >= 0 else None
