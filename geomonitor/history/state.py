"""A history in a checkpoint: a few tensors, whatever the number of records.

What repeats is stored once. Step, epoch and time are stored once a measurement; the markers that a measurement holds
once for all measurements that hold the same; errors only for markers that have any. That leaves 8 bytes a record, and
24 if every record has both errors; nothing is rounded.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.history.columns import FLOATS, INTEGERS, Column

_SHARED = ("steps", "epochs", "times")
_ERRORS = ("standard_errors", "change_errors")
_NAN = np.nan


def to_state(columns: Sequence[Column], order: array[int]) -> dict[str, Any]:
    """Columns as tensors and lists of names; loads with ``torch.load(weights_only=True)``.

    Args:
        columns: one for each marker of each layer.
        order: of each record in the order in which they came, the number of its column.
    """
    codes = np.array(order, dtype=np.int32)
    flat = _flat(columns, codes)
    starts = _starts(flat, len(codes))
    layouts, layout = _layouts(codes, starts)
    layers, markers = (list(dict.fromkeys(names)) for names in zip(*((c.layer, c.marker) for c in columns), strict=True)
                       ) if columns else ([], [])  # fmt: skip
    place = {name: n for n, name in enumerate(layers)}, {name: n for n, name in enumerate(markers)}
    state: dict[str, Any] = {
        "layers": layers,
        "markers": markers,
        "columns": _tensor([[place[0][c.layer], place[1][c.marker]] for c in columns], np.int32).reshape(-1, 2),
        "layouts": _tensor(np.concatenate([*layouts, np.empty(0, np.int32)]), np.int32),
        "layout_lengths": _tensor([len(of_one) for of_one in layouts], np.int64),
        "layout": _tensor(layout, np.int32),
        "values": torch.from_numpy(flat["values"]),
        **{name: torch.from_numpy(flat[name][starts]) for name in _SHARED},
    }
    for name in _ERRORS:
        has_any = np.array([not np.isnan(column.array(name)).all() for column in columns], dtype=bool)
        state[name] = torch.from_numpy(flat[name][has_any[codes]] if len(codes) else flat[name])
        state[f"has_{name}"] = torch.from_numpy(has_any)
    return state


def from_state(state: Mapping[str, Any]) -> tuple[list[Column], array[int]]:
    """The columns and the order that :func:`to_state` was given.

    Raises:
        InputError: not such a state, or a damaged one.
    """
    try:
        return _columns(state)
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"the history in this state is damaged ({type(error).__name__}: {error})") from error


def _columns(state: Mapping[str, Any]) -> tuple[list[Column], array[int]]:
    names = [(state["layers"][layer], state["markers"][marker]) for layer, marker in _list(state["columns"])]
    layouts = np.split(_array(state["layouts"], np.int32), np.cumsum(_array(state["layout_lengths"], np.int64))[:-1])
    layout = _array(state["layout"], np.int32)
    codes = np.concatenate([np.empty(0, np.int32), *(layouts[n] for n in layout.tolist())])
    lengths = np.array([len(of_one) for of_one in layouts], dtype=np.int64)[layout] if len(layout) else layout
    kinds = {name: np.int64 if name in INTEGERS else np.float64 for name in (*INTEGERS, *FLOATS)}
    flat: dict[str, NDArray[Any]] = {"values": _array(state["values"], np.float64)}
    flat |= {name: np.repeat(_array(state[name], kinds[name]), lengths) for name in _SHARED}
    for name in _ERRORS:
        flat[name] = np.full(len(codes), _NAN)
        if len(codes):
            flat[name][_array(state[f"has_{name}"], np.bool_)[codes]] = _array(state[name], np.float64)
    if any(len(numbers) != len(codes) for numbers in flat.values()):
        raise ValueError("tensors of different lengths")
    counts = np.bincount(codes, minlength=len(names)) if len(codes) else np.zeros(len(names), dtype=np.int64)
    if len(counts) != len(names) or (names and not counts.all()):
        raise ValueError("a marker without records")
    by_column, ends = np.argsort(codes, kind="stable"), np.cumsum(counts)
    flat = {name: numbers[by_column] for name, numbers in flat.items()}
    columns = [Column(layer, marker) for layer, marker in names]
    for column, end, count in zip(columns, ends.tolist(), counts.tolist(), strict=True):
        column.fill({name: numbers[end - count : end] for name, numbers in flat.items()})
    order = array("i")
    order.frombytes(codes.astype(np.int32).tobytes())
    return columns, order


def _flat(columns: Sequence[Column], codes: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    """The numbers of all columns in the order in which the records came."""
    by_column = np.argsort(codes, kind="stable")
    flat = {}
    for name in (*INTEGERS, *FLOATS):
        numbers = np.concatenate([np.empty(0, np.int64 if name in INTEGERS else np.float64),
                                  *(column.array(name) for column in columns)])  # fmt: skip
        flat[name] = np.empty_like(numbers)
        flat[name][by_column] = numbers
    return flat


def _starts(flat: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.int64]:
    """Places at which a measurement begins: another step, epoch or time than the record before."""
    begins = np.arange(count) == 0
    for name in _SHARED:
        bits = flat[name].view(np.int64)  # NaN equals NaN
        begins[1:] |= bits[1:] != bits[:-1]
    return np.flatnonzero(begins)


def _layouts(codes: NDArray[np.int32], starts: NDArray[np.int64]) -> tuple[list[NDArray[np.int32]], list[int]]:
    """The different lists of columns that measurements hold, and which of them each measurement holds."""
    known: dict[bytes, int] = {}
    held = np.split(codes, starts[1:]) if len(starts) else []
    layout = [known.setdefault(of_one.tobytes(), len(known)) for of_one in held]
    return [np.frombuffer(of_one, dtype=np.int32) for of_one in known], layout


def _tensor(numbers: Any, dtype: Any) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=dtype))


def _array(numbers: Any, dtype: Any) -> NDArray[Any]:
    return np.asarray(numbers.cpu() if isinstance(numbers, Tensor) else numbers, dtype=dtype).reshape(-1)


def _list(numbers: Any) -> list[list[int]]:
    return [[int(layer), int(marker)] for layer, marker in torch.as_tensor(numbers).tolist()]
