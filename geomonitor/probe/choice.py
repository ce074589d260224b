"""Which classes, and which points of a class, a seed chooses; the same on every platform and in every process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from geomonitor import _options
from geomonitor._options import Range
from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.probe.datasets import Indices

MOST_CLASSES = 20
"""Classes taken by default from a dataset that has more: enough for the geometry, and affordable."""
CLASS_COUNT = Range(0, 1_000_000, ends="[]", whole=True)
"""How many classes; more is a mistake, such as the number of items."""
SEED = Range(0, 2**63, ends="[)", whole=True)
"""Seeds that a ``torch.Generator`` also takes."""


def checked_classes(classes: Any) -> int | tuple[int, ...]:
    """How many classes, or their labels, ascending and each once; NumPy's and torch's integers become Python's.

    Raises:
        InputError: neither.

    >>> checked_classes(np.int64(3)), checked_classes([5, 1, 5])
    (3, (1, 5))
    """
    if isinstance(classes, Tensor):
        classes = classes.detach().cpu().numpy()
    if isinstance(classes, np.ndarray):
        classes = classes.tolist()
    if isinstance(classes, (str, bytes, Mapping)) or not isinstance(classes, Iterable):
        return int(CLASS_COUNT.number("classes", classes))
    lowest = np.iinfo(np.int64).min
    return tuple(sorted({_options.whole("each of classes", label, least=lowest) for label in classes}))


class Choice(NamedTuple):
    """Which points make up a probe set."""

    classes: tuple[int, ...]
    """ascending"""
    per_class: int
    """points of each class"""
    indices: Indices
    """``(Q,)`` into the dataset, class by class"""


def choose(
    labels: Indices,
    rows: Indices,
    classes: int | tuple[int, ...] | None,
    per_class: int,
    *,
    seed: int,
    allow_fewer: bool,
    name: Callable[[int], str] = str,
) -> Choice:
    """Choose points; what is chosen in a class depends on the seed and that class alone.

    Args:
        labels: ``(n,)`` of all items.
        rows: ``(n, 2)`` source of each item and index in it: items of equal rows count once.
        classes: labels, how many, or None: all, or ``MOST_CLASSES`` if there are more.
        per_class: points of each class.
        seed: of both choices.
        allow_fewer: take fewer points of all classes if one has too few.
        name: of a class, for messages.

    Raises:
        InputError: fewer than two classes, classes that do not exist, or too few points in one.

    Warns:
        GeomonitorWarning: not all classes, or fewer points, were taken.
    """
    taken = choose_classes(labels, classes, seed)
    candidates = {label: _distinct(np.flatnonzero(labels == label), rows) for label in taken}
    per_class = _available({name(label): len(candidates[label]) for label in taken}, per_class, allow_fewer)
    of_class = [_choose_points(candidates[label], label, per_class, seed) for label in taken]
    return Choice(taken, per_class, np.concatenate(of_class))


def choose_unlabelled(rows: Indices, samples: int, *, seed: int) -> Indices:
    """Positions of points of a dataset without labels, in the order of their origins; a repeated item counts once.

    Raises:
        InputError: too few items.
    """
    positions = _distinct(np.arange(len(rows)), rows)
    if len(positions) < samples:
        raise InputError(f"samples={samples} were requested, but the dataset has {len(positions)} different items")
    return _choose_points(positions, 0, samples, seed)


def choose_classes(labels: Indices, classes: int | tuple[int, ...] | None, seed: int) -> tuple[int, ...]:
    """Labels of the classes, ascending: those given, as many as given (chosen by seed), or all up to ``MOST_CLASSES``.

    Raises:
        InputError: classes that do not exist, or fewer than two.

    Warns:
        GeomonitorWarning: not all classes were taken.
    """
    known: list[int] = np.unique(labels).tolist()
    if classes is None and len(known) > MOST_CLASSES:
        warnings.warn(
            f"the dataset has {len(known)} classes; the probe set takes {MOST_CLASSES} of them, chosen by "
            "seed. Give classes= (labels, or how many) to choose yourself.",
            GeomonitorWarning,
            stacklevel=4,
        )
        classes = MOST_CLASSES
    if isinstance(classes, int):
        if classes > len(known):
            raise InputError(f"classes={classes} were requested, but the dataset has {len(known)}")
        drawn = np.sort(np.argsort(_random(len(known), 0, seed), kind="stable")[:classes])
        chosen = [known[place] for place in drawn]
    else:
        chosen = known if classes is None else list(classes)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise InputError(f"the dataset has no points of classes {_few(unknown)}; it has {_few(known)}")
    if len(chosen) < 2:
        raise InputError(f"a probe set needs two classes or more, found {chosen}; the dataset has {_few(known)}")
    return tuple(chosen)


def _few(labels: list[int]) -> str:
    return ", ".join(map(str, labels[:20])) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")


def _distinct(positions: Indices, rows: Indices) -> Indices:
    """Positions of different points, in the order of their origins."""
    _, first = np.unique(rows[positions], axis=0, return_index=True)
    return positions[first]


def _available(counts: Mapping[str, int], per_class: int, allow_fewer: bool) -> int:
    few = {label: count for label, count in counts.items() if count < per_class}
    if not few:
        return per_class
    short = "{" + ", ".join(f"{label}: {count}" for label, count in few.items()) + "}"
    if not allow_fewer:
        raise InputError(
            f"per_class={per_class}, but some classes have fewer points (class: points): {short}. Choose "
            f"per_class={min(counts.values())}, other classes, or allow_fewer=True"
        )
    warnings.warn(
        f"per_class is {min(counts.values())} for all classes, not {per_class}: some have fewer points "
        f"(class: points): {short}. Values measured with different per_class must not be compared.",
        GeomonitorWarning,
        stacklevel=4,
    )
    return min(counts.values())


def _choose_points(positions: Indices, label: int, per_class: int, seed: int) -> Indices:
    ranking = np.argsort(_random(len(positions), 1, seed, abs(label), int(label < 0)), kind="stable")
    return positions[np.sort(ranking[:per_class])]


def _random(count: int, *seeds: int) -> Any:
    # The raw stream of a bit generator is the same in every NumPy; permutations drawn from it are not.
    return np.random.PCG64(seeds).random_raw(count)
