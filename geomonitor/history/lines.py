"""Records as lines of a CSV file, and back."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.history.records import Record

HEADER = ",".join(Record._fields) + "\r\n"
_FEWEST_COLUMNS = 6  # up to the standard error; later versions added some at the end
_LARGEST = 2**63 - 1
_SHOWN = 120
"""Characters of a line that an error quotes."""


def lines_of(records: Iterable[Record]) -> str:
    r"""One line a record; floats as ``repr``, so that every digit comes back.

    >>> lines_of([Record(10, 0, "fc", "dimension", 2.5)])
    '10,0,fc,dimension,2.5,nan,nan,nan\r\n'
    """
    text = io.StringIO()
    csv.writer(text).writerows(records)
    return text.getvalue()


def read_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of a history file.

    A last line cut off by a kill is left out with a warning. Columns that an older version did not write are NaN.

    Raises:
        InputError: not a history file, or a broken line other than the last.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except IsADirectoryError:
        raise InputError(f"{path} is a directory: give a history file") from None
    whole, cut_off = _whole_lines(text)
    try:
        rows = list(csv.reader(io.StringIO(whole, newline="")))
    except csv.Error as error:
        raise InputError(f"{path} is no history file: {error}") from error
    columns = len(rows[0]) if rows else 0
    if columns < _FEWEST_COLUMNS or tuple(rows[0]) != Record._fields[:columns]:
        raise InputError(f"{path} is no history file: its first line must be {HEADER.strip()}")
    if cut_off:
        warnings.warn(f"{path}: the last line was cut off and is left out", GeomonitorWarning, stacklevel=4)
    for number, row in enumerate(rows[1:], start=2):
        yield _record(row, columns, f"{path}, line {number}")


def _whole_lines(text: str) -> tuple[str, str]:
    """The complete lines, and what a kill has left of one that is not: no line end, or a quote that stays open."""
    end = text.rfind("\n") + 1
    quotes = text.count('"', 0, end)
    while quotes % 2:
        start = text.rfind("\n", 0, end - 1) + 1
        quotes -= text.count('"', start, end)
        end = start
    return text[:end], text[end:]


def _record(row: list[str], columns: int, place: str) -> Record:
    try:
        step, epoch, layer, marker, *numbers = row
        if len(row) != columns:
            raise ValueError
        whole = int(step), int(epoch) if epoch else None
        if not all(0 <= number <= _LARGEST for number in whole if number is not None):
            raise ValueError
        return Record(*whole, layer, marker, *map(float, numbers))
    except ValueError:
        found = ",".join(row)
        found = repr(found if len(found) <= _SHOWN else f"{found[:_SHOWN]}...")
        raise InputError(
            f"{place}: expected {HEADER.strip()} with step and epoch from 0 to 2**63 - 1, found {found}"
        ) from None
