"""Whether the linear head that was found gives the logits of the model from the features that were taken.

It may not: features can be pooled otherwise than in the model, a forward pass can use other weights than those that a
layer holds, and logits can be changed in place after their layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from geomonitor._distributed import ALL_PROCESSES, Processes
from geomonitor.features.linear_head import Head
from geomonitor.features.outputs import logits_in
from geomonitor.measure.points import PointBuffer

_FAR, _FAR_IN_HALF = 0.05, 0.2
"""by which logits may differ, of their length; 8-bit weights and activations differ by 0.01, half precision by more"""
_SUM = 0.02
"""by which probabilities may not sum to one"""
_LOGITS, _SUMS = "logits", "whether they are probabilities"
_AT_ONCE = 4096
"""rows that are held in float64 at the same time"""
_HALF = (torch.float16, torch.bfloat16)
_REASON = (
    "its weights do not give the logits of the model from these features (they are pooled otherwise than in the model, "
    "the forward pass uses other weights, or the logits are changed afterwards)"
)


class HeadCheck:
    """Logits of the points of a measurement; every process makes the same calls, whatever happens in it.

    Args:
        labels: columns of the logits.
        place: which output holds them, by the names of ``outputs_of``; None: by the rule of ``logits_in``.
        device: of the gathered points.
        processes: that measure together.
    """

    def __init__(
        self, labels: Sequence[int], place: str | None, device: torch.device, processes: Processes = ALL_PROCESSES
    ) -> None:
        self._labels = tuple(labels)
        self._place = place
        self._device = device
        self._processes = processes
        self._scores = PointBuffer(device, processes)
        self._found = True
        self._half = False

    def add(self, output: Any, classes: Tensor, ids: Tensor) -> None:
        """Add what the model returned for a batch; once it holds no logits of the points, nothing is checked.

        Args:
            output: of the model.
            classes: ``(B,)`` class numbers; empty: the rows were borrowed.
            ids: ``(B,)`` ids of the points.
        """
        logits = logits_in(output, self._labels, self._place) if self._found and len(classes) else None
        if logits is not None and len(logits) == len(classes):
            self._half |= logits.dtype in _HALF
            columns, sums = logits[:, list(self._labels)].float(), _sums_to_one(logits).float()[:, None]
            self._scores.add({_LOGITS: columns, _SUMS: sums}, classes=classes, ids=ids)
        elif len(classes):
            self._found = False

    def of(
        self, heads: Mapping[str, Head], rows: Mapping[str, Tensor], dtypes: Mapping[str, str], model: torch.device
    ) -> dict[str, Head]:
        """The heads, without those that do not give the logits.

        Args:
            heads: by layer.
            rows: ``(Q, N)`` features of all processes by layer.
            dtypes: in which layers computed, by layer.
            model: the device over which processes agree.
        """
        if not self._processes.all(self._found, model):
            return dict(heads)
        points, found = self._scores.gather().rows, dict(heads)
        scores = points[_LOGITS].double()  # squares of small logits would be zero in float32
        scores = scores.log() if bool(points[_SUMS].all()) else scores
        for layer, head in heads.items():
            half = self._half or getattr(torch, dtypes.get(layer, ""), None) in _HALF
            if head.weight is not None and not _gives(head, rows[layer], scores, half=half):
                found[layer] = Head(reason=_REASON)
        return found


def _sums_to_one(logits: Tensor) -> Tensor:
    """Whether rows ``(B, C)`` may be probabilities; logits of a few points may look so by chance."""
    rows = logits.detach().double()
    return (rows >= 0).all(dim=1) & ((rows.sum(dim=1) - 1).abs() < _SUM)


def _gives(head: Head, rows: Tensor, scores: Tensor, *, half: bool) -> bool:
    """Whether a head gives scores ``(Q, P)`` for rows ``(Q, N)``, apart from a positive factor."""
    if head.weight is None or head.weight.shape[0] != scores.shape[1]:
        return True
    weight, bias = head.weight.to(scores), 0.0 if head.bias is None else head.bias.to(scores)
    own = torch.cat([part.to(scores) @ weight.T + bias for part in torch.split(rows, _AT_ONCE)])
    known = own.isfinite() & scores.isfinite()  # a probability may be rounded to zero
    rounding = torch.finfo(torch.bfloat16 if half else torch.float32).eps * scores[known].norm()
    own, scores = (_centred(values, known) for values in (own, scores))
    apart = (scores - _factor(own, scores) * own).norm()
    return bool(apart <= (_FAR_IN_HALF if half else _FAR) * scores.norm() + rounding)


def _factor(own: Tensor, scores: Tensor) -> Tensor:
    """By which own scores come nearest to others; not negative."""
    return ((own * scores).sum() / own.square().sum().clamp_min(torch.finfo(own.dtype).tiny)).clamp_min(0)


def _centred(values: Tensor, known: Tensor) -> Tensor:
    kept = torch.where(known, values, 0)
    return torch.where(known, kept - kept.sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True).clamp_min(1), 0)
