"""A probe set that is not held out beforehand: points of the validation loop, in its own forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.probe.choice import SEED, checked_classes
from geomonitor.probe.label_key import LabelKey, checked_label_key, split_label


class ValidationProbe:
    """Measure on points of the validation loop, in its own forward passes (passive mode).

    Once, at the first batch, eight points of it run through the model to find the layers, what gives the logits and how
    the model pools; if the model is sharded over processes, or cannot be called on the inputs of the
    batch, ``"penultimate"`` is the input of the ``nn.Linear`` that was registered last.

    Limits: validation data with random augmentation gives other features at each epoch, unlike a held-out ``ProbeSet``
    without transforms; whether the points are trained on is not checked; input shifts cannot be measured; a model
    compiled by ``torch.compile`` runs uncompiled in the validations that are measured.

    Args:
        classes: labels to measure, or how many, counted from 0. Points of other classes are ignored.
        per_class: points ``M`` of each class; classes with fewer points have all of them.
        seed: which points.
        labels: gives the labels ``(B,)`` of a batch; by default the last part of a pair or the field ``"label"``,
            ``"labels"``, ``"target"``, ...
        ids: gives integers ``(B,)`` that name the points of a batch, the same at every epoch. Needed if the
            validation loader shuffles; by default the id of a point is its position.
        label_key: place of the label in a batch, instead of ``labels``.

    Raises:
        InputError: fewer than two classes, or another option of the wrong type or range.

    >>> ValidationProbe(classes=10, per_class=20)
    ValidationProbe(10 classes x 20 points, seed=0)
    """

    fingerprint = "validation loop"
    content = None

    def __init__(
        self,
        *,
        classes: int | Sequence[int],
        per_class: int = 50,
        seed: int = 0,
        labels: Callable[[Any], Tensor] | None = None,
        ids: Callable[[Any], Tensor] | None = None,
        label_key: LabelKey = None,
    ) -> None:
        chosen = checked_classes(classes)
        self.classes = tuple(range(chosen)) if isinstance(chosen, int) else chosen
        if len(self.classes) < 2:
            raise InputError(f"a validation probe needs two classes or more; got classes={classes!r}")
        self.per_class = _options.whole("per_class", per_class, least=2)
        self.seed = int(SEED.number("seed", seed))
        self.labels = None if labels is None else _options.function("labels", labels, "batch")
        self.ids = None if ids is None else _options.function("ids", ids, "batch")
        self.label_key = checked_label_key(label_key)

    def __repr__(self) -> str:
        return f"ValidationProbe({len(self.classes)} classes x {self.per_class} points, seed={self.seed})"

    def inputs_in(self, batch: Any) -> Any:
        """What goes to the model of a validation batch; all of it, if only a function knows the labels."""
        try:
            return split_label(batch, self.label_key)[0]
        except InputError:
            if self.labels is None:
                raise
            return batch

    def labels_in(self, batch: Any) -> Tensor:
        """The labels ``(B,)`` of a validation batch, on the CPU.

        Raises:
            InputError: no label found, or not one integer a point.
        """
        found = self.labels(batch) if self.labels else split_label(batch, self.label_key)[1]
        try:
            labels = torch.as_tensor(found).cpu() if found is not None else torch.tensor(0.5)
        except (TypeError, ValueError, RuntimeError):  # a list of batches, text
            labels = torch.tensor(0.5)
        if labels.ndim != 1 or labels.is_floating_point():
            raise InputError(
                "no integer labels (B,) were found in the validation batch: give ValidationProbe(labels=function "
                f"of the batch); found {_described(found)}"
            )
        return labels.to(torch.int64)


def _described(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"{found.dtype} {tuple(found.shape)}"
    return "none" if found is None else f"a {type(found).__name__}"
