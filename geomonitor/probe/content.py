"""Fingerprint of what items of a dataset hold, bit by bit: other data under the same indices is recognised by it."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from numbers import Number
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomonitor.errors import GeomonitorWarning, InputError

CHECKED_POINTS = 8
"""Points whose content is compared: all of a dataset that was changed, moved or normalised anew differ."""
DEEPEST = 20
"""Levels of nesting: what is deeper, such as an object that holds itself, has no fingerprint."""


class UnknownContentError(InputError):
    """An item holds something whose content cannot be read."""


def digest(item: Any) -> str:
    """Fingerprint of an item, 16 hexadecimal digits: the same on every platform and in every process.

    Args:
        item: tensors, arrays, images, numbers, text and bytes, in mappings, sequences, sets and dataclasses, nested in
            any way, and objects with ``to_dict``. The order of a mapping does not count.

    Raises:
        UnknownContentError: something else.

    >>> digest((torch.tensor([1.0, 2.0]), 3)) == digest((torch.tensor([1.0, 2.0]), 3))
    True
    >>> digest({"pixels": np.zeros(2), "label": 3}) == digest({"label": 3, "pixels": np.zeros(3)})
    False
    """
    return _digest(item, 0).hex()[:16]


def content_of(read: Callable[[int], list[str]], indices: Sequence[int], name: str) -> str | None:
    """Fingerprint of a few items of a dataset, which are read twice.

    Args:
        read: reads the items n times in a row, each time anew, and gives the digests of all.
        indices: of these items.
        name: of the dataset, for the warning.

    Returns:
        16 hexadecimal digits; None if the items have no fingerprint, or another one each time.

    Warns:
        GeomonitorWarning: of None, and why.
    """
    try:
        both = read(2)  # at once: the second time, other random numbers are drawn than the first time
        first, second = both[: len(indices)], both[len(indices) :]
    except UnknownContentError as error:
        warnings.warn(f"whether the data stay the same is not checked: {error}", GeomonitorWarning, stacklevel=4)
        return None
    differ = [index for index, one, other in zip(indices, first, second, strict=True) if one != other]
    if differ:
        warnings.warn(
            f"{name} gives other items each time they are read (of {len(first)} points that were read twice, "
            f"{len(differ)} differ, such as index {differ[0]}): the markers then also depend on the random transforms, "
            "and whether the data stay the same is not checked. Give the probe set a dataset without them.",
            GeomonitorWarning,
            stacklevel=4,
        )
    return None if differ else _joined(first)


def content_of_views(read: Callable[[int], list[str]]) -> str | None:
    """As :func:`content_of`, of views, which must be the same ones each time.

    Args:
        read: as in :func:`content_of`.

    Raises:
        InputError: they are not.
    """
    try:
        both = read(2)
    except UnknownContentError as error:
        warnings.warn(f"whether the views stay the same is not checked: {error}", GeomonitorWarning, stacklevel=4)
        return None
    if both[: len(both) // 2] != both[len(both) // 2 :]:
        raise InputError(
            "the views are other ones each time they are made from the same seeds of torch, numpy.random and random: "
            "let the transform draw from these streams only (no generator of its own, no clock, no counter)"
        )
    return _joined(both[: len(both) // 2])


def content_now(read: Callable[[int], list[str]]) -> str:
    """The fingerprint of :func:`content_of` again."""
    return _joined(read(1))


def _joined(digests: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


def _digest(item: Any, depth: int) -> bytes:
    if depth > DEEPEST:
        raise UnknownContentError("items are nested too deep for a fingerprint of their content")
    if (found := _plain(item)) is not None:
        return _hash(*found)
    parts = _parts(item)
    if parts is None:
        name = f"{type(item).__module__}.{type(item).__qualname__}"
        raise UnknownContentError(f"the items hold a {name}, whose content cannot be compared")
    kind, values = parts
    inner = [_digest(value, depth + 1) for value in values]
    return _hash(kind, *(inner if kind == "sequence" else sorted(inner)))


def _hash(*parts: str | bytes) -> bytes:
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        whole.update(struct.pack("<q", len(data)))  # so that no two lists of parts run together alike
        whole.update(data)
    return whole.digest()


def _plain(item: Any) -> tuple[str | bytes, ...] | None:
    """What a value without parts is made of; None for one that has parts, or is unknown."""
    if isinstance(item, Tensor):
        return None if item.is_nested or item.is_meta else _of_tensor(item)
    if isinstance(item, (np.ndarray, np.generic)):
        return None if item.dtype.hasobject else _of_array(np.asarray(item))
    if isinstance(item, str):
        return "str", item
    if isinstance(item, (bytes, bytearray, memoryview)):
        return "bytes", bytes(item)
    if item is None or isinstance(item, (bool, Number)):
        return type(item).__name__, repr(item)
    if isinstance(item, PathLike):
        return "path", str(item)
    if all(hasattr(item, name) for name in ("tobytes", "mode", "size", "getbands")):  # PIL, which need not be there
        palette = item.getpalette() if item.mode == "P" else None
        return "image", str(item.mode), repr(tuple(item.size)), item.tobytes(), repr(palette)
    return None


def _of_tensor(tensor: Tensor) -> tuple[str | bytes, ...]:
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.as_subclass(Tensor)
    if tensor.is_quantized:
        return "quantized", repr(tensor.qscheme()), *_of_array(tensor.cpu().int_repr().numpy())
    data = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return "tensor", str(tensor.dtype), repr(tuple(tensor.shape)), data.numpy().tobytes()


def _of_array(array: np.ndarray[Any, Any]) -> tuple[str | bytes, ...]:
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return "array", array.dtype.str, repr(array.shape), np.ascontiguousarray(array).tobytes()


def _parts(item: Any) -> tuple[str, Iterable[Any]] | None:
    """Kind and parts of a value that has parts; None for an unknown one."""
    if isinstance(item, Mapping):
        return "mapping", ((key, item[key]) for key in item)
    if isinstance(item, np.ndarray):
        return "sequence", [repr(item.shape), *item.ravel().tolist()]
    if isinstance(item, Sequence):
        return "sequence", item
    if isinstance(item, Tensor):
        return ("sequence", item.unbind()) if item.is_nested else None
    if isinstance(item, AbstractSet):
        return "set", item
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return "mapping", [(field.name, getattr(item, field.name)) for field in dataclasses.fields(item)]
    if callable(to_dict := getattr(item, "to_dict", None)) and not isinstance(item, type):
        return "mapping", [("", to_dict())]
    if hasattr(item, "__array__") and not isinstance(item, type):
        return "sequence", [np.asarray(item)]
    return None
