"""The labels of the items of a map-style dataset, without loading the items if possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, SubsetRandomSampler

from geomonitor.errors import InputError
from geomonitor.probe.apart import read
from geomonitor.probe.label_key import LABEL_NAMES, LabelKey, attributes_of, holds, split_label

# Attributes in which torchvision-like datasets keep the labels of all items.
_STORED_IN = ("targets", "labels")
# Under these names a wrapper, such as one that adds a transform, keeps the dataset that it wraps.
_WRAPPED_AS = ("dataset", "subset")
# Stored labels are compared with this many loaded items, of different classes, before they are used.
_CHECKED_ITEMS = 32
_ITEMS_AT_ONCE = 256

Indices = NDArray[np.int64]
Targets = NDArray[Any]
"""One number an item, ``(n,)``; several, ``(n, k)``; or ``(n,)`` tuples as objects, if their lengths differ."""


def map_style(data: Any) -> Any:
    """The dataset itself, or the one that a ``DataLoader`` reads (its part, with a ``SubsetRandomSampler``).

    Raises:
        InputError: an iterable dataset, or anything else without a length and items.
    """
    if isinstance(data, DataLoader):
        sampler = data.sampler
        data = data.dataset
        if isinstance(sampler, SubsetRandomSampler):
            data = Subset(data, sampler.indices)
    if isinstance(data, (IterableDataset, Mapping, str, bytes, type)) or not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        raise InputError(
            f"expected a map-style dataset (len(dataset), dataset[i]), found {_kind(data)}. Points "
            "of a stream can be kept in a list: list(itertools.islice(stream, 5000))"
        )
    return data


def _kind(data: Any) -> str:
    name = data.__name__ if isinstance(data, type) else type(data).__name__
    return f"the class {name} instead of an object" if isinstance(data, type) else name


def labels_of(dataset: Any, label_key: LabelKey = None) -> Indices:
    """Class labels of all items: :func:`targets_of`, if they are one whole number each.

    Args:
        dataset: map-style.
        label_key: as for ``split_label``.

    Returns:
        Labels, int64 (n,), in the order of the dataset.

    Raises:
        InputError: items without a label, or labels that are not one integer for each item.

    Example:
        >>> labels_of([("a", 4), ("b", 7)])
        array([4, 7])
    """
    return class_labels(targets_of(dataset, label_key))


def targets_of(dataset: Any, label_key: LabelKey = None) -> Targets:
    """Targets of all items: class labels, or other numbers.

    Taken from ``targets``, ``labels``, ``tensors`` or a column, through subsets and wrappers, if they agree
    with a few loaded items; otherwise every item is loaded once. All of it outside of this process, see
    :func:`geomonitor.probe.apart.read_apart`, unless the dataset is in memory.

    Args:
        dataset: map-style.
        label_key: as for ``split_label``.

    Raises:
        InputError: items without a target, or with one that holds no numbers.

    >>> targets_of([("a", 0.5), ("b", 7)])
    array([0.5, 7. ])
    """
    parts = list(read(partial(_read_targets, label_key=label_key), dataset))
    if len({(part.shape[1:], part.dtype.kind == "O") for part in parts}) == 1:
        return np.concatenate(parts)
    return _as_objects([row for part in parts for row in part])


def _read_targets(dataset: Any, label_key: LabelKey) -> Iterator[Targets]:
    """The targets of all items in one part or several, none of which takes long to read."""
    stored = _stored_targets(dataset, label_key)
    if stored is not None and len(stored) == len(dataset) and _agrees(dataset, stored, label_key):
        yield stored
        return
    for start in range(0, max(len(dataset), 1), _ITEMS_AT_ONCE):
        yield _loaded_targets(dataset, range(start, min(start + _ITEMS_AT_ONCE, len(dataset))), label_key)


def _stored_targets(dataset: Any, label_key: LabelKey) -> Targets | None:
    if isinstance(dataset, Subset):
        inner = _stored_targets(dataset.dataset, label_key)
        return None if inner is None else inner[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [_stored_targets(part, label_key) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    tensors = getattr(dataset, "tensors", None)
    if isinstance(tensors, tuple):
        return _stored_in(tensors, label_key)
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, (list, tuple)) and isinstance(label_key, tuple):
        return _side_by_side([list(dataset[name]) for name in label_key if name in columns])
    if isinstance(columns, (list, tuple)):
        name = next((name for name in (label_key, *LABEL_NAMES) if name in columns), None)
        return None if name is None else _as_targets(list(dataset[name]))
    inner_dataset = wrapped(dataset)
    if inner_dataset is not None:
        return _stored_targets(inner_dataset, label_key)
    return None if label_key is not None else _label_attribute(dataset)


def _stored_in(tensors: tuple[Any, ...], label_key: LabelKey) -> Targets | None:
    label = split_label(tensors, label_key)[1]
    if label is None or not isinstance(label_key, tuple):
        return None if label is None else _as_targets(label)
    if holds(tensors, label_key):
        return _side_by_side(label)
    return _side_by_side([label[:, key] for key in label_key if isinstance(key, int) and label.ndim == 2])


def _side_by_side(columns: Any) -> Targets | None:
    """Two attributes ``(n,)`` as ``(n, 2)``; None if there are not two."""
    return np.stack([_as_targets(column) for column in columns], axis=1) if len(columns) == 2 else None


def _label_attribute(dataset: Any) -> Targets | None:
    for name in _STORED_IN:
        values: Any = getattr(dataset, name, None)
        if not hasattr(values, "__len__") or len(values) != len(dataset):
            continue
        transform = getattr(dataset, "target_transform", None)
        try:
            return _as_targets(values if transform is None else [transform(value) for value in values])
        except InputError:  # something else under that name, such as boxes or file names: look at the items
            continue
    return None


def wrapped(dataset: Any) -> Any:
    """The dataset that a wrapper of the same length passes on, if this is one, else None."""
    for name in _WRAPPED_AS:
        inner: Any = getattr(dataset, name, None)
        is_dataset = hasattr(inner, "__getitem__") and hasattr(inner, "__len__")
        if is_dataset and inner is not dataset and len(inner) == len(dataset):
            return inner
    return None


def _agrees(dataset: Any, stored: Targets, label_key: LabelKey) -> bool:
    """Whether the first items of some classes carry the stored targets: a wrapper may renumber them."""
    first = np.unique(stored, return_index=True, axis=None if stored.dtype.kind == "O" else 0)[1][:_CHECKED_ITEMS]
    try:
        loaded = _loaded_targets(dataset, first.tolist(), label_key)
    except _NoLabelError:
        return True
    return bool(np.array_equal(loaded, stored[first]))


class _NoLabelError(InputError):
    """Items are inputs alone; that is allowed if the labels are stored elsewhere."""


def _loaded_targets(dataset: Any, indices: Any, label_key: LabelKey) -> Targets:
    found = []
    for index in indices:
        if isinstance(label_key, tuple):
            found.append(tuple(map(_plain, attributes_of(dataset[index], label_key))))
            continue
        label = split_label(dataset[index], label_key)[1]
        if label is None:
            raise _NoLabelError(
                f"item {index} of {type(dataset).__name__} has no label: expected (x, y), or a mapping "
                f"with one of {', '.join(LABEL_NAMES)}; otherwise give its place as label_key"
            )
        found.append(_plain(label))
    return _as_targets(found)


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, Tensor) and label.numel() == 1 else label


def _as_targets(values: Any) -> Targets:
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except ValueError:  # lists of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind == "O":
        array = _as_objects(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.size and array.dtype.kind not in "iubfO":
        raise InputError(
            f"expected integer class labels, found {array.dtype} such as {array[0]!r}. Number the classes, or of "
            "targets that are no classes (text) give ProbeSet.from_unlabelled(dataset)"
        )
    return array


def _as_objects(rows: Any) -> Targets:
    """Rows of any lengths as tuples of numbers, one object each."""
    array = np.empty(len(rows), dtype=object)
    for place, row in enumerate(rows):
        numbers = np.atleast_1d(np.asarray(row))
        if numbers.ndim != 1 or numbers.dtype.kind not in "iubf":
            raise InputError(f"expected one integer class label for each item, found {row!r}")
        array[place] = tuple(numbers.tolist())
    return array


def class_labels(targets: Targets) -> Indices:
    """Targets as class labels.

    Raises:
        InputError: they are not one whole number for each item.

    >>> class_labels(np.array([4.0, 7.0]))
    array([4, 7])
    """
    array, kind = targets, targets.dtype.kind
    if array.ndim != 1 or kind == "O":
        found = "lists of different lengths" if kind == "O" else f"labels of shape {array.shape}"
        raise InputError(
            f"expected one integer class label for each item, found {found}: one-hot labels need argmax(1), for "
            "example in a dataset that wraps this one; of several labels an item give ProbeSet.from_dataset(..., "
            "label_sets=True), or ProbeSet.from_unlabelled(dataset)"
        )
    if not (array.size == 0 or kind in "iub" or (kind == "f" and np.array_equal(array, np.round(array)))):
        raise InputError(
            f"expected integer class labels, found {array.dtype} such as {array[0]!r}. Of targets that are no classes "
            "(regression) give ProbeSet.from_dataset(..., quantile_bins=5), or ProbeSet.from_unlabelled(dataset)"
        )
    if kind in "uf" and array.size and array.max() >= 2.0**63:
        raise InputError(f"expected class labels below 2**63, found {array.max()}")
    return array.astype(np.int64)
