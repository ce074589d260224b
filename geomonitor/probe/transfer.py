"""The transfer probe: labelled points of classes that training does not see, on which transfer is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from geomonitor.errors import InputError
from geomonitor.probe.held_out import origins, overlap
from geomonitor.probe.label_key import LabelKey, checked_label_key
from geomonitor.probe.probe_set import ProbeSet

FEWEST_POINTS = 10
"""Of a class: two in each of five folds, and more than the five shots of a few-shot task."""


@dataclass(frozen=True, eq=False)
class TransferProbe:
    """Labelled points of new classes, always the same ones. Made by ``from_dataset``.

    With ``GeometryMonitor(..., truth=...)`` each measurement also gives ``transfer_accuracy``,
    ``transfer_few_shot`` and ``transfer_knn`` on these points, and ``knn_accuracy`` on the probe set, for one more
    forward pass. They are shown beside the markers; no panel judges them.

    They measure transfer to *these* classes, and forecast nothing. If the same classes choose a checkpoint, their
    accuracy there is biased upwards: report other ones.
    """

    probe: ProbeSet

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        per_class: int = 50,
        classes: int | Sequence[int] | None = None,
        seed: int = 0,
        allow_fewer: bool = False,
        label_key: LabelKey = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> TransferProbe:
        """Choose the points, as :meth:`ProbeSet.from_dataset` does.

        Args:
            dataset: labelled, of classes that the network is not trained on.
            per_class: points of each class, ten or more.
            classes: the labels to take, or how many; None: all, or 20 if there are more.
            seed: 0 or a positive integer.
            allow_fewer: if a class has fewer than ``per_class`` points, lower it for all classes.
            label_key: field or position of the label in an item, if it is not the usual one.
            collate_fn: makes a batch of items.

        Raises:
            InputError: as :meth:`ProbeSet.from_dataset`; fewer than ten points of a class.

        >>> import torch
        >>> data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.arange(80) % 4)
        >>> TransferProbe.from_dataset(data, per_class=20).probe.classes
        (0, 1, 2, 3)
        """
        label_key = checked_label_key(label_key)
        probe = ProbeSet.from_dataset(
            dataset, per_class=per_class, classes=classes, seed=seed, allow_fewer=allow_fewer, label_key=label_key,
            collate_fn=collate_fn,
        )  # fmt: skip
        if not probe.labelled:
            raise InputError("a TransferProbe needs a dataset with class labels, one whole number for each item")
        if probe.per_class < FEWEST_POINTS:
            raise InputError(f"a TransferProbe needs {FEWEST_POINTS} points of each class; got {probe.per_class}")
        return cls(probe)

    @property
    def fingerprint(self) -> str:
        """Changes with the points."""
        return self.probe.fingerprint

    def check_new(self, known: ProbeSet) -> None:
        """Refuse classes that the probe set also has, as far as the datasets show.

        Labels are compared within one dataset only: classes of two datasets cannot be.

        Raises:
            InputError: a shared point, or a shared class of one dataset.
        """
        ours, theirs = origins(self.probe.dataset), origins(known.dataset)
        one = any(_is_one_dataset(a, b) for a in ours.sources for b in theirs.sources)
        shared = sorted(set(self.probe.classes) & set(known.classes)) if one and known.logit_columns else []
        mine = ours._replace(rows=ours.rows[self.probe.indices.numpy()])
        points = overlap(mine, Subset(known.dataset, known.indices.tolist()), strict=False)
        if shared or len(points):
            found = f"the classes {shared}" if shared else f"{len(points)} points"
            raise InputError(
                f"the TransferProbe and the probe set share {found} of one dataset, but transfer is measured on "
                "classes that training does not see: give TransferProbe.from_dataset(..., classes=[...]) the new ones"
            )


def _is_one_dataset(one: Any, other: Any) -> bool:
    """Whether labels of both have one meaning: one object, equal data, or one tensor."""
    tensors = [getattr(each, "tensors", None) for each in (one, other)]
    if one is other:
        return True
    if not all(tensors):
        return type(one) is type(other) and len(one) == len(other) and _same_data(one, other)
    first, second = (each[0] for each in tensors if each)
    return bool(first.data_ptr() == second.data_ptr() and first.shape == second.shape)


def _same_data(one: Any, other: Any) -> bool:
    """Whether two datasets of one class and length hold the same array, or list the same files."""
    data, samples = getattr(one, "data", None), getattr(one, "samples", None)
    if isinstance(data, (Tensor, np.ndarray)):
        return bool(np.array_equal(np.asarray(data), np.asarray(other.data)))
    return isinstance(samples, list) and samples == other.samples


def checked_truth(truth: Any, probe: Any) -> TransferProbe | None:
    """The transfer probe of a monitor, or None.

    Raises:
        InputError: something else, or classes that the probe set also has.
    """
    if truth is None:
        return None
    if not isinstance(truth, TransferProbe):
        raise InputError(f"truth takes TransferProbe.from_dataset(new_class_dataset); got {type(truth).__name__}")
    if isinstance(probe, ProbeSet):
        truth.check_new(probe)
    return truth
