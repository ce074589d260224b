"""The origins of the items of a dataset, by which probe points in the training set are recognised."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from geomonitor.errors import InputError
from geomonitor.probe.datasets import Indices, map_style, wrapped


class Origins(NamedTuple):
    """Origins of items, through ``Subset``, ``ConcatDataset`` and wrappers."""

    sources: list[Any]  # the datasets at the bottom
    rows: Indices  # (n, 2): number of the source, index in it


def origins(dataset: Any) -> Origins:
    """The origins of the items of a dataset.

    Args:
        dataset: map-style.

    Returns:
        The datasets at the bottom of all ``Subset``, ``ConcatDataset`` and wrappers, and a row for each item.

    Example:
        >>> origins(Subset(Subset(range(10), [4, 5, 6]), [2, 0])).rows.tolist()
        [[0, 6], [0, 4]]
    """
    if isinstance(dataset, Subset):
        inner = origins(dataset.dataset)
        return Origins(inner.sources, inner.rows[np.asarray(dataset.indices, dtype=np.int64)])
    if isinstance(dataset, ConcatDataset):
        sources: list[Any] = []
        parts = []
        for part in map(origins, dataset.datasets):
            parts.append(part.rows + np.array([len(sources), 0]))
            sources.extend(part.sources)
        return Origins(sources, np.concatenate(parts))
    inner_dataset = wrapped(dataset)
    if inner_dataset is not None:
        return origins(inner_dataset)
    return Origins([dataset], np.stack([np.zeros(len(dataset), np.int64), np.arange(len(dataset))], axis=1))


def overlap(ours: Origins, train: Any) -> Indices:
    """Which items are also in a training set.

    The same item is recognised by its index in the same dataset object, in another object of the same class
    with equal ``data`` or ``samples`` (the usual pair with different transforms), or by its place in memory
    for a ``TensorDataset``. Copies of the content elsewhere are not.

    Args:
        ours: items to look for.
        train: dataset, ``DataLoader``, or indices into the one source of ``ours``.

    Returns:
        Positions in ``ours``, ascending.

    Raises:
        InputError: indices, while ``ours`` has several sources; an iterable dataset.
    """
    indices = _as_indices(train)
    if indices is None:
        theirs = origins(map_style(train))
    elif len(ours.sources) == 1:
        theirs = Origins(ours.sources, np.stack([np.zeros(len(indices), np.int64), indices], axis=1))
    else:
        raise InputError("indices are ambiguous for a ConcatDataset: give the training dataset itself as train=")
    shared = np.zeros(len(ours.rows), dtype=bool)
    for mine, source in enumerate(ours.sources):
        for other, train_source in enumerate(theirs.sources):
            if same_source(source, train_source):
                rows = ours.rows[:, 0] == mine
                there = _item_keys(train_source, theirs.rows[theirs.rows[:, 0] == other, 1])
                shared[rows] |= np.isin(_item_keys(source, ours.rows[rows, 1]), there)
    return np.flatnonzero(shared).astype(np.int64)


def _as_indices(train: Any) -> Indices | None:
    """The indices, if that is what was given; None for a dataset."""
    if isinstance(train, (set, frozenset)):
        train = sorted(train)
    is_array = isinstance(train, (Tensor, np.ndarray))
    starts_with = (*train, 0)[0] if isinstance(train, (list, tuple)) else None
    if not (is_array or isinstance(train, range) or isinstance(starts_with, (int, np.integer))):
        return None
    array = train.detach().cpu().numpy() if isinstance(train, Tensor) else np.asarray(train)
    if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
        raise InputError(f"expected indices in train, found an array of {array.dtype}, shape {array.shape}")
    return array.astype(np.int64)


def same_source(one: Any, other: Any) -> bool:
    """Whether two datasets at the bottom may hold the same items; of two ``TensorDataset``, compare the items."""
    if one is other or (_first_tensor(one) is not None and _first_tensor(other) is not None):
        return True
    if type(one) is not type(other) or len(one) != len(other):
        return False
    data, samples = getattr(one, "data", None), getattr(one, "samples", None)
    if isinstance(data, (Tensor, np.ndarray)):
        return bool(np.array_equal(np.asarray(data), np.asarray(other.data)))
    return isinstance(samples, list) and samples == other.samples


def _first_tensor(source: Any) -> Tensor | None:
    tensors = getattr(source, "tensors", None)
    first = tensors[0] if isinstance(tensors, tuple) and tensors else None
    return first if isinstance(first, Tensor) and first.layout == torch.strided else None


def _item_keys(source: Any, indices: Indices) -> Indices:
    """Numbers that are equal for equal items of two datasets that ``same_source`` accepts."""
    tensor = _first_tensor(source)
    if tensor is None:
        return indices
    return tensor.data_ptr() + indices * tensor.stride(0) * tensor.element_size()
