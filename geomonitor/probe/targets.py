"""Targets that are no classes: regression and several labels an item. Classes are made of them only on request."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from typing import Any, Literal, NamedTuple

import numpy as np

from geomonitor import _options
from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.probe.datasets import Indices, Targets, class_labels

LOG = logging.getLogger("geomonitor")
"""What classes were made of goes here, at level INFO."""


class Classes(NamedTuple):
    """The classes of a dataset."""

    labels: Indices | None
    """``(n,)``; of classes that were made, numbers from 0, -1 if an item is in none; None: targets are no classes"""
    made_from: dict[str, Any] | None
    """what was done with targets that are no classes, in plain Python, for the protocol; None: they are classes"""
    members: Indices
    """positions of the items that are in a class"""

    @property
    def kind(self) -> str:
        """Changes with the options: part of the fingerprint of the probe set."""
        return "probe" if self.made_from is None else f"probe of {next(iter(self.made_from))}"


def classes_of(
    targets: Targets, rows: Indices, per_class: int, quantile_bins: int | None = None, label_sets: bool = False
) -> Classes:
    """The classes of items: their targets, or what the options make of them; what was done is logged.

    Args:
        targets: of all items.
        rows: ``(n, 2)`` source of each item and index in it: items of equal rows count once.
        per_class: the fewest items of a class that is a set of labels.
        quantile_bins: how many classes regression targets are cut into.
        label_sets: each set of labels is a class.

    Raises:
        InputError: both options; targets that an option does not suit; targets that are neither classes nor numbers.

    Warns:
        GeomonitorWarning: targets are no classes, and no option is given; items are in no class.
    """
    label_sets, everything = _options.flag("label_sets", label_sets), np.arange(len(targets))
    distinct = np.unique(rows, axis=0, return_index=True)[1]
    if quantile_bins is not None and label_sets:
        raise InputError("give quantile_bins (one number for each item) or label_sets (several labels), not both")
    if quantile_bins is not None:
        labels, edges = binned(targets, quantile_bins, distinct)
        cut = ", ".join(f"{edge:.4g}" for edge in edges)
        LOG.info("the probe set's %d classes are quantile bins of the targets, cut at %s", labels.max() + 1, cut)
        return Classes(labels, {"quantile_bins": int(quantile_bins), "edges": edges}, everything)
    if label_sets:
        labels, sets = numbered_sets(targets, per_class, distinct)
        LOG.info("the probe set's %d classes are sets of labels: %s", len(sets), sets)
        _warn_of_rare_sets(labels)
        return Classes(labels, {"label_sets": sets}, np.flatnonzero(labels >= 0))
    kind = kind_of(targets)
    if kind == "classes":
        return Classes(class_labels(targets), None, everything)
    _warn_without_labels(kind, targets)
    return Classes(None, {"left_out": kind}, everything)


def kind_of(targets: Targets) -> Literal["classes", "numbers", "label sets"]:
    """What targets are: one whole number an item, any other numbers, or several of 0 and 1.

    Raises:
        InputError: none of these: text, lists of different lengths, one-hot labels.

    >>> kind_of(np.array([0, 2])), kind_of(np.array([0.5, 2])), kind_of(np.array([[1, 1, 0], [0, 0, 0]]))
    ('classes', 'numbers', 'label sets')
    """
    if targets.dtype.kind in "iubf" and targets.size:
        binary = targets.ndim == 2 and bool(np.isin(targets, (0, 1)).all())
        if binary and not bool((targets.sum(axis=1) == 1).all()):
            return "label sets"
        if not binary and (targets.ndim == 2 or not np.array_equal(targets, np.round(targets))):
            return "numbers"
    class_labels(targets)
    return "classes"


def binned(targets: Targets, bins: int, distinct: Indices) -> tuple[Indices, list[float]]:
    r"""Cut numbers into classes of nearly equal size, ``(edge, next edge]``; equal targets stay together.

    Args:
        targets: ``(n,)``.
        bins: how many classes, two or more; fewer are made if targets repeat.
        distinct: positions of the items that make up the quantiles, each item once.

    Returns:
        Classes ``(n,)`` from 0, in the order of the targets, and the edges between them.

    Raises:
        InputError: several numbers an item, text, NaN or infinite targets, more classes than items, or fewer than two.

    >>> binned(np.array([0.1, 0.2, 0.7, 0.9]), 2, np.arange(4))[0]
    array([0, 0, 1, 1])
    """
    bins = _options.whole("quantile_bins", bins, least=2)
    if bins > len(distinct):
        raise InputError(f"quantile_bins={bins} are more classes than there are items, {len(distinct)}")
    if targets.ndim != 1 or targets.dtype.kind not in "iubf":
        found = f"{targets.dtype} of shape {targets.shape}"
        raise InputError(f"quantile_bins={bins} needs one number for each item as its target; got {found}")
    if not np.isfinite(targets).all():
        bad = int((~np.isfinite(targets)).sum())
        raise InputError(f"quantile_bins={bins} needs finite targets; {bad} of {len(targets)} are NaN or infinite")
    numbers = targets.astype(np.float64)
    edges = np.unique(np.quantile(numbers[distinct], np.linspace(0, 1, bins + 1)[1:-1]))
    values, labels = np.unique(np.searchsorted(edges, numbers, side="left"), return_inverse=True)
    if len(values) < 2:
        raise InputError(f"quantile_bins={bins} gives a single class: nearly all targets are {edges[0]:g}")
    return labels.astype(np.int64), edges.tolist()


def numbered_sets(targets: Targets, per_class: int, distinct: Indices) -> tuple[Indices, list[list[int]]]:
    """Each set of labels that ``per_class`` items or more have is a class; items with a rarer set are in none.

    Args:
        targets: ``(n, k)`` of 0 and 1, or ``(n,)`` lists of labels as objects.
        per_class: the fewest items of a class.
        distinct: positions of the items that count, each item once.

    Returns:
        Classes ``(n,)`` from 0, -1 in none, and the labels of each.

    Raises:
        InputError: targets that are no sets of labels; fewer than two sets are left.

    >>> numbered_sets(np.array([[1, 0], [1, 1], [1, 0], [1, 1], [0, 0]]), 2, np.arange(5))
    (array([ 0,  1,  0,  1, -1]), [[0], [0, 1]])
    """
    sets = _sets_of(targets)
    counts = Counter(sets[place] for place in distinct)
    kept = sorted(found for found, count in counts.items() if count >= per_class)
    if len(kept) < 2:
        raise InputError(
            f"label_sets=True needs two sets of labels with per_class={per_class} items each; {len(kept)} of "
            f"{len(counts)} have as many"
        )
    number = {found: place for place, found in enumerate(kept)}
    labels = np.array([number.get(found, -1) for found in sets], dtype=np.int64)
    return labels, [list(found) for found in kept]


def _sets_of(targets: Targets) -> list[tuple[int, ...]]:
    if targets.ndim == 2 and targets.dtype.kind in "iubf" and np.isin(targets, (0, 1)).all():
        return [tuple(np.flatnonzero(row).tolist()) for row in targets]
    if targets.dtype.kind == "O" or (targets.ndim == 2 and targets.dtype.kind in "iu" and targets.min(initial=0) >= 0):
        found: list[tuple[int, ...]] = []
        for place, row in enumerate(targets):
            labels = np.asarray(row)
            if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
                raise InputError(f"label_sets=True needs a list of whole numbers for each item; item {place} has {row}")
            found.append(tuple(sorted(set(labels.tolist()))))
        return found
    raise InputError(
        f"label_sets=True needs 0 or 1 for each label, (n, labels), or a list of labels for each item; got "
        f"{targets.dtype} of shape {targets.shape}"
    )


def _warn_of_rare_sets(labels: Indices) -> None:
    left_out = int((labels < 0).sum())
    if left_out:
        warnings.warn(
            f"{left_out} of {len(labels)} items are in no class: fewer than per_class items have their set of labels.",
            GeomonitorWarning,
            stacklevel=4,
        )


def _warn_without_labels(kind: str, targets: Targets) -> None:
    option = "label_sets=True"
    if kind == "numbers":
        option = "quantile_bins=5" if targets.ndim == 1 else "a dataset with one number or class for each item"
    warnings.warn(
        f"the targets are no classes ({kind}: {targets.dtype} of shape {targets.shape}): the probe set has no labels, "
        f"as that of ProbeSet.from_unlabelled, and markers that need labels are left out. For classes give {option}.",
        GeomonitorWarning,
        stacklevel=4,
    )
