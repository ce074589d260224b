"""The origins of the items of a dataset, by which probe points in the training set are recognised."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from geomonitor._random import preserved_rng
from geomonitor.errors import InputError
from geomonitor.probe.content import UnknownContentError, digest
from geomonitor.probe.datasets import Indices, map_style, wrapped
from geomonitor.probe.label_key import split_label


class Origins(NamedTuple):
    """Origins of items, through ``Subset``, ``ConcatDataset`` and wrappers."""

    sources: list[Any]  # the datasets at the bottom
    rows: Indices  # (n, 2): number of the source, index in it


def origins(dataset: Any, *, search: bool = False) -> Origins:
    """The origins of the items of a dataset.

    Args:
        dataset: map-style.
        search: also take for a wrapper what holds one dataset of its length under any name.

    Returns:
        The datasets at the bottom of all ``Subset``, ``ConcatDataset`` and wrappers, and a row for each item.

    Example:
        >>> origins(Subset(Subset(range(10), [4, 5, 6]), [2, 0])).rows.tolist()
        [[0, 6], [0, 4]]
    """
    if isinstance(dataset, Subset):
        inner = origins(dataset.dataset, search=search)
        return Origins(inner.sources, inner.rows[np.asarray(dataset.indices, dtype=np.int64)])
    if isinstance(dataset, ConcatDataset):
        sources: list[Any] = []
        parts = []
        for part in (origins(each, search=search) for each in dataset.datasets):
            parts.append(part.rows + np.array([len(sources), 0]))
            sources.extend(part.sources)
        return Origins(sources, np.concatenate(parts))
    inner_dataset = wrapped(dataset)
    if inner_dataset is None and search:
        inner_dataset = _held(dataset)
    if inner_dataset is not None:
        return origins(inner_dataset, search=search)
    return Origins([dataset], np.stack([np.zeros(len(dataset), np.int64), np.arange(len(dataset))], axis=1))


def _held(dataset: Any) -> Any:
    """The only dataset among the attributes, if it has the same length."""
    attributes = vars(dataset).values() if hasattr(dataset, "__dict__") else ()
    held = {id(value): value for value in attributes if isinstance(value, Dataset) and hasattr(value, "__len__")}
    inner = next(iter(held.values())) if len(held) == 1 else None
    return inner if inner is not None and inner is not dataset and len(inner) == len(dataset) else None


def overlap(ours: Origins, train: Any, *, strict: bool = True) -> Indices:
    """Which items are also in a training set.

    The same item is recognised by its index in the same dataset object; by its content among the ``tensors`` or
    ``data`` that both hold in memory, in two lists, or in two datasets of one class with the same transforms; or by its
    path in the ``samples`` of both.

    Args:
        ours: items to look for, from ``origins(..., search=True)``.
        train: dataset, ``DataLoader``, or indices into the one source of ``ours``.
        strict: False: what cannot be compared counts as different.

    Returns:
        Positions in ``ours``, ascending.

    Raises:
        InputError: what cannot be compared, so that nothing would be known: an iterable dataset, a collection of
            datasets, a dataset of another kind; indices that are none, or while ``ours`` has several sources.
    """
    indices = _as_indices(train)
    if indices is None:
        theirs = origins(_one_dataset(train), search=True)
    elif len(ours.sources) == 1:
        theirs = Origins(ours.sources, np.stack([np.zeros(len(indices), np.int64), indices], axis=1))
        _check_range(indices, len(ours.sources[0]))
    else:
        raise InputError("indices are ambiguous for a ConcatDataset: give the training dataset itself as train=")
    shared = np.zeros(len(ours.rows), dtype=bool)
    for mine, source in enumerate(ours.sources):
        for other, train_source in enumerate(theirs.sources):
            here, there = ours.rows[:, 0] == mine, theirs.rows[theirs.rows[:, 0] == other, 1]
            if here.any() and len(there):
                shared[here] |= _found(source, ours.rows[here, 1], train_source, there, strict=strict)
    return np.flatnonzero(shared).astype(np.int64)


def _as_indices(train: Any) -> Indices | None:
    """The indices, if that is what was given; None for a dataset."""
    if isinstance(train, (set, frozenset)):
        train = list(train)
    is_array = isinstance(train, (Tensor, np.ndarray))
    starts_with = (*train, 0)[0] if isinstance(train, (list, tuple)) else None
    if not (is_array or isinstance(train, range) or isinstance(starts_with, (int, np.integer))):
        return None
    array = train.detach().cpu().numpy() if isinstance(train, Tensor) else np.asarray(train)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"expected indices in train, found an array of {array.dtype}, shape {array.shape}")
    return array.astype(np.int64)


def _check_range(indices: Indices, length: int) -> None:
    if len(indices) and not (indices.min() >= 0 and indices.max() < length):
        wrong = indices[(indices < 0) | (indices >= length)][0]
        raise InputError(
            f"expected indices in train from 0 to {length - 1}, those of the dataset at the bottom of the "
            f"probe's; found {wrong}"
        )


def _one_dataset(train: Any) -> Any:
    if isinstance(train, (str, bytes, Mapping)):
        what = f"the keys {', '.join(map(str, train))}" if isinstance(train, Mapping) else repr(train)
        raise InputError(f"train must be one dataset, its DataLoader, or indices; got {type(train).__name__}: {what}")
    return map_style(train)


def _found(source: Any, indices: Indices, train: Any, train_indices: Indices, *, strict: bool) -> NDArray[np.bool_]:
    """Which items of a source are among those of another one."""
    if source is train:
        return np.isin(indices, train_indices)
    for keys_of in (_rows_in_memory, _paths, _contents):
        ours, theirs = keys_of(source, train, indices), keys_of(train, source, train_indices)
        if ours is not None and theirs is not None:
            there = set(theirs)
            return np.array([key in there for key in ours])
    if not strict:
        return np.zeros(len(indices), dtype=bool)
    raise InputError(
        f"whether points of the probe set are trained on cannot be checked: train is a {_name(train)}, the probe set "
        f"is from a {_name(source)}, and which items of the two are the same is not known. Give indices as train=, or "
        "both as Subset or wrapper (attribute 'dataset') of one dataset object; leave train= out if you know that they "
        "are disjoint."
    )


def _rows_in_memory(source: Any, other: Any, indices: Indices) -> list[Any] | None:
    """Bytes of what both hold in memory, ahead of any transform."""
    mine, theirs = _array(source), _array(other)
    if mine is None or theirs is None or (mine.dtype, mine.shape[1:]) != (theirs.dtype, theirs.shape[1:]):
        return None
    return [hash(np.ascontiguousarray(mine[index]).tobytes()) for index in indices]


def _array(source: Any) -> np.ndarray[Any, Any] | None:
    tensors, data = getattr(source, "tensors", None), getattr(source, "data", None)
    found = tensors[0] if isinstance(tensors, tuple) and tensors else data
    if isinstance(found, Tensor) and found.layout == torch.strided and not found.is_quantized:
        plain = found.detach().cpu()
        found = (plain.view(torch.int16) if plain.dtype == torch.bfloat16 and plain.ndim else plain).numpy()
    usable = isinstance(found, np.ndarray) and found.ndim and not found.dtype.hasobject and len(found) == len(source)
    return found if usable else None


def _paths(source: Any, other: Any, indices: Indices) -> list[Any] | None:
    """Files, as datasets of folders list them; whatever their classes are."""
    samples = _samples(source)
    if samples is None or _samples(other) is None:
        return None
    return [os.path.realpath(samples[index]) for index in indices]


def _samples(source: Any) -> list[str | os.PathLike[str]] | None:
    samples = getattr(source, "samples", None)
    if not isinstance(samples, list) or len(samples) != len(source):
        return None
    firsts = [sample[0] if isinstance(sample, (tuple, list)) and sample else sample for sample in samples]
    return firsts if all(isinstance(first, (str, os.PathLike)) for first in firsts) else None


def _contents(source: Any, other: Any, indices: Indices) -> list[Any] | None:
    """Fingerprints of the items, if both are read in the same way and are not random."""
    alike = type(source) is type(other) and all(
        repr(getattr(source, name, None)) == repr(getattr(other, name, None)) for name in _TRANSFORMS
    )
    if not alike or max(len(source), len(other)) > MOST_READ:
        return None
    with preserved_rng():
        try:
            again = [digest(_inputs(source[index])) for index in indices[:_READ_TWICE]]
            keys = [digest(_inputs(source[index])) for index in indices]
        except UnknownContentError:
            return None
    return keys if again == keys[: len(again)] else None


def _inputs(item: Any) -> Any:
    """Without the label: a point is the same if it is labelled anew."""
    try:
        return split_label(item)[0]
    except InputError:  # which part is the label is not known
        return item


def _name(source: Any) -> str:
    return f"{type(source).__name__} of {len(source)} items"


MOST_READ = 10_000
"""Items up to which two datasets of one class are compared by reading them."""
_READ_TWICE = 8
_TRANSFORMS = ("transform", "transforms", "target_transform")


def refuse_overlap(dataset: Any, indices: Indices, train: Any) -> None:
    """Refuse chosen points that are in the training set; nothing to do without one.

    Args:
        dataset: map-style.
        indices: of the points in it.
        train: as in ``ProbeSet.from_dataset``, or None.

    Raises:
        InputError: some are, or it cannot be compared.
    """
    if train is None:
        return
    found = origins(dataset, search=True)
    shared = indices[overlap(Origins(found.sources, found.rows[indices]), train)]
    if len(shared):
        first = ", ".join(map(str, shared[:5])) + (", ..." if len(shared) > 5 else "")
        raise InputError(
            f"{len(shared)} of {len(indices)} probe points are in the training set (indices {first}), but a "
            "probe set must be held out: give the held-out part as dataset, such as Subset(dataset, held_out)"
        )


def fingerprint_of(rows: Indices, labels: Indices, per_class: int, seed: int, kind: str = "probe") -> str:
    """Of what the points are in the datasets at the bottom: another ``Subset`` is another probe set."""
    found = hashlib.sha256(f"geomonitor {kind} 1, per_class {per_class}, seed {seed}".encode())
    for values in (rows, labels):
        found.update(np.ascontiguousarray(values, dtype="<i8").tobytes())
    return found.hexdigest()[:16]
