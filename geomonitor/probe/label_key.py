"""The place of the label in an item, and what is left of the item without it."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from geomonitor.errors import InputError

LABEL_NAMES = ("label", "labels", "target", "targets", "y")

AttributeKeys = tuple[str, str] | tuple[int, int]
"""Names or positions of two attributes of an item, whose combinations are the classes."""
LabelKey = str | int | AttributeKeys | None


def checked_label_key(key: Any, *, attributes: bool = False) -> Any:
    """The field or position of a label, or of two attributes; NumPy's integers become Python's.

    Args:
        key: what a user wrote.
        attributes: whether two are allowed.

    Raises:
        InputError: anything else.

    >>> checked_label_key("label"), checked_label_key(["shape", "colour"], attributes=True)
    ('label', ('shape', 'colour'))
    """
    if isinstance(key, (tuple, list)):
        if not attributes:
            raise InputError(
                f"label_key is one field or position here; got {key!r}. Two attributes make the classes of "
                "ProbeSet.from_dataset alone"
            )
        keys = tuple(checked_label_key(part) for part in key)
        if len(keys) != 2 or None in keys or keys[0] == keys[1] or len({type(part) for part in keys}) != 1:
            raise InputError(
                "label_key of two attributes has the names of two fields, or two positions, such as "
                f"('shape', 'colour'); got {key!r}"
            )
        return keys
    if key is None or isinstance(key, str):
        return key
    if not isinstance(key, Integral) or isinstance(key, bool):
        raise InputError(f"label_key is the name of a field, or a position such as -1 for the last; got {key!r}")
    return int(key)


def split_label(item: Any, label_key: LabelKey = None) -> tuple[Any, Any]:
    """Take an item, or a batch, apart into what goes to the model and the label.

    Args:
        item: a pair (x, y); a longer tuple; a mapping with one of ``LABEL_NAMES``; or an input alone.
        label_key: the place of the label if it is not the usual one: a field, or a position in a tuple. Two, of
            attributes, are fields of a mapping, positions in a tuple of three parts or more, or fields or positions of
            the label that is in the usual place.

    Returns:
        Inputs and label; inputs are what is left: a mapping, a tuple, or the item itself if only one is left.
        The label is None if the item has none; of two attributes a tuple of both, or what holds them.

    Raises:
        InputError: a tuple of more than two without a ``label_key``, or a ``label_key`` that is not there.

    Example:
        >>> split_label({"pixels": [0.5], "label": 3})
        ({'pixels': [0.5]}, 3)
        >>> split_label(("left", "right", 3), label_key=-1)
        (('left', 'right'), 3)
        >>> split_label({"pixels": [0.5], "shape": 0, "colour": 2}, ("shape", "colour"))
        ({'pixels': [0.5]}, (0, 2))
    """
    if isinstance(label_key, tuple):
        if not holds(item, label_key):
            return split_label(item)
        places = label_places(item, label_key)
        return _without(item, places), tuple(item[place] for place in places)
    if isinstance(item, Mapping):
        # A collate function may have renamed the field (Hugging Face: label -> labels).
        names = [name for name in (label_key, *LABEL_NAMES) if name in item]
        return (_without(item, names[:1]), item[names[0]]) if names else (item, None)
    if not isinstance(item, (tuple, list)):
        return item, None
    if label_key is None and len(item) > 2:
        raise InputError(
            f"an item has {len(item)} parts, and which is the label is not known: give its position, such as "
            "label_key=-1 for the last"
        )
    position = 1 if label_key is None else label_key
    if not isinstance(position, int) or not -len(item) <= position < len(item):
        if label_key is None:
            return item[0], None
        raise InputError(f"label_key={label_key!r} is not a position in an item of {len(item)} parts")
    return _without(item, [position % len(item)]), item[position]


def holds(item: Any, keys: AttributeKeys) -> bool:
    """Whether two attributes are parts of an item, and not of its label.

    >>> holds((0.5, 1, 2), (1, 2)), holds((0.5, (1, 2)), (0, 1))
    (True, False)
    """
    if isinstance(item, Mapping):
        return all(key in item for key in keys)
    sequence = isinstance(item, (tuple, list)) and len(item) > 2
    return sequence and all(isinstance(key, int) and -len(item) <= key < len(item) for key in keys)


def label_places(item: Any, label_key: LabelKey) -> list[Any]:
    """Fields or positions, from 0, of the label in a mapping or tuple; positions that are not there are kept.

    >>> label_places((0.5, 1, 2), (1, -1)), label_places((0.5, 1), None)
    ([1, 2], [1])
    """
    if isinstance(label_key, tuple) and holds(item, label_key):
        return [key if isinstance(key, str) or isinstance(item, Mapping) else key % len(item) for key in label_key]
    return [1 if label_key is None or isinstance(label_key, tuple) else label_key]


def attributes_of(item: Any, keys: AttributeKeys) -> tuple[Any, Any]:
    """The two attributes of an item.

    Raises:
        InputError: they are neither in the item nor in its label.

    >>> attributes_of((0.5, {"shape": 0, "colour": 2}), ("shape", "colour"))
    (0, 2)
    """
    label = split_label(item, keys)[1]
    if holds(item, keys):
        return label[0], label[1]
    try:
        return label[keys[0]], label[keys[1]]
    except (KeyError, IndexError, TypeError) as error:
        fields = f" with {', '.join(map(repr, item))}" if isinstance(item, Mapping) else ""
        raise InputError(
            f"label_key={keys!r} of two attributes: found neither in an item, a {type(item).__name__}{fields}, nor in "
            f"its label, a {type(label).__name__}"
        ) from error


def _without(item: Any, places: list[Any]) -> Any:
    """A mapping without some fields, or a tuple without some positions; its only part, if one is left."""
    if isinstance(item, Mapping):
        return {name: value for name, value in item.items() if name not in places}
    rest = [part for place, part in enumerate(item) if place not in places]
    return rest[0] if len(rest) == 1 else tuple(rest)
