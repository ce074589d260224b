"""Two attributes of each item, such as shape and colour: each combination of their values is a class."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.probe.choice import MOST_CLASSES, checked_classes, choose_classes
from geomonitor.probe.datasets import Indices, Targets, class_labels
from geomonitor.probe.label_key import AttributeKeys

LOG = logging.getLogger("geomonitor")
_NAMED = 6
"""Combinations that an error names."""


class Crossed(NamedTuple):
    """The combinations of two attributes."""

    labels: Indices
    """``(n,)`` number ``a * B + b`` of the combination of values number a and b, of all that the dataset has"""
    classes: tuple[int, ...]
    """numbers that are taken: each of some values of the first with each of some values of the second"""
    made_from: dict[str, Any]
    """names of the attributes and their values, in plain Python, for the protocol"""

    def name(self, label: int) -> str:
        """A combination in words."""
        return combination(label, self.made_from)


def crossed(targets: Targets, keys: AttributeKeys, asked: Any, seed: int) -> Crossed:
    """Classes of the combinations of two attributes: a whole grid of values.

    Args:
        targets: ``(n, 2)`` the two attributes of each item.
        keys: their names or positions.
        asked: for each attribute the values to take, or how many, chosen by seed; None: all, or as many as give 20
            combinations if there are more.
        seed: of that choice.

    Raises:
        InputError: an attribute with a single value, unknown values, a combination that no item has.

    Warns:
        GeomonitorWarning: not all values were taken.

    >>> crossed(np.array([[0, 5], [1, 5], [0, 7], [1, 7]]), ("shape", "colour"), None, 0).labels
    array([0, 2, 1, 3])
    """
    names: list[str | int] = list(keys)
    columns = [_whole_numbers(targets, place, name) for place, name in enumerate(names)]
    values, codes = zip(*(np.unique(column, return_inverse=True) for column in columns), strict=True)
    made_from = {"attributes": names, "values": [found.tolist() for found in values]}
    taken = [
        _chosen(column, wanted, name, seed)
        for column, wanted, name in zip(columns, _wanted(values, asked, keys), names, strict=True)
    ]
    labels = (codes[0] * len(values[1]) + codes[1]).astype(np.int64)
    places = [np.searchsorted(found, some) for found, some in zip(values, taken, strict=True)]
    classes = tuple(int(a * len(values[1]) + b) for a in places[0] for b in places[1])
    found = Crossed(labels, classes, made_from)
    if missing := sorted(set(classes) - set(np.unique(labels).tolist())):
        raise InputError(
            f"every combination of the attributes needs items, and none has {_listed(missing, found)}. Give "
            "classes=((values of the first), (values of the second)) of which each combination occurs"
        )
    LOG.info(
        "the probe set's %d classes are the combinations of %s (%d values) and %s (%d values); from %s to %s",
        len(classes), keys[0], len(taken[0]), keys[1], len(taken[1]), found.name(classes[0]), found.name(classes[-1]),
    )  # fmt: skip
    return found


def shape_of(classes: Sequence[int], made_from: dict[str, Any] | Any) -> tuple[int, int] | None:
    """How many values of each attribute are taken; None if the classes are no combinations.

    >>> shape_of((0, 1, 3, 4), {"attributes": ["shape", "colour"], "values": [[0, 1], [5, 6, 7]]})
    (2, 2)
    """
    if made_from is None or "attributes" not in made_from:
        return None
    second = len(made_from["values"][1])
    return len({label // second for label in classes}), len({label % second for label in classes})


def combination(label: int, made_from: dict[str, Any]) -> str:
    """A combination in words.

    >>> combination(4, {"attributes": ["shape", "colour"], "values": [[0, 1], [5, 6, 7]]})
    'shape=1 with colour=6'
    """
    (one, other), (first, second) = made_from["attributes"], made_from["values"]
    return f"{one}={first[label // len(second)]} with {other}={second[label % len(second)]}"


def _listed(labels: Sequence[int], found: Crossed) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return ", ".join(map(found.name, labels[:_NAMED])) + more


def _whole_numbers(targets: Targets, place: int, name: str | int) -> Indices:
    try:
        return class_labels(targets[:, place])
    except (InputError, IndexError) as error:
        raise InputError(f"the attribute {name!r} is no whole number for each item: {error}") from error


def _wanted(values: Sequence[Indices], asked: Any, keys: AttributeKeys) -> list[Any]:
    """For each attribute the values, or how many."""
    if asked is not None:
        if not isinstance(asked, (tuple, list)) or len(asked) != 2:
            raise InputError(
                f"classes of two attributes has two parts, for {keys[0]} and {keys[1]}: the values to take, or how "
                f"many; got {asked!r}"
            )
        return [None if part is None else checked_classes(part) for part in asked]
    sizes = [len(found) for found in values]
    while sizes[0] * sizes[1] > MOST_CLASSES and max(sizes) > 2:
        sizes[int(sizes[1] >= sizes[0])] -= 1
    if sizes != [len(found) for found in values]:
        all_of = " x ".join(str(len(found)) for found in values)
        warnings.warn(
            f"{keys[0]} and {keys[1]} have {all_of} combinations; the probe set takes {sizes[0]} x {sizes[1]} of them, "
            "chosen by seed. Give classes=(values or how many of the first, of the second) to choose yourself.",
            GeomonitorWarning,
            stacklevel=4,
        )
    return list(sizes)


def _chosen(column: Indices, wanted: Any, name: str | int, seed: int) -> tuple[int, ...]:
    try:
        return choose_classes(column, len(np.unique(column)) if wanted is None else wanted, seed)
    except InputError as error:
        raise InputError(f"values of the attribute {name!r}: {error}") from error
