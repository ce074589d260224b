"""All records of a run, in memory and in an append-only CSV file."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.history.records import SECONDS, Record, Series
from geomonitor.history.run_file import RunFile, free_name, write_at_once

_FEWEST_COLUMNS = 6  # up to the standard error; later versions added some at the end


class History:
    """All records of a run, in memory and, once :meth:`open` is called, in a file that survives a kill.

    A record of the same step, layer and marker as an earlier one replaces it, so that a part of a run that is done
    again after a resume does not count twice.

    >>> history = History()
    >>> history.append([Record(10, 0, "penultimate", "dimension", 2.5, 0.1)])
    >>> history.series("penultimate", "dimension").values
    array([2.5])
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records: dict[tuple[int, str, str], Record] = {}
        self._series: dict[tuple[str, str], dict[int, Record]] = {}
        self._file: RunFile | None = None
        self._keep(records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    @property
    def path(self) -> Path | None:
        """The file that is written, if any; another one than was opened where another run has taken its name."""
        return None if self._file is None else self._file.path

    def append(self, records: Iterable[Record]) -> None:
        """Keep records and write them to the file; a full or read-only disk is warned of, never an error."""
        records = list(records)
        self._keep(records)
        if self._file is not None:
            self._file.add(_rows(records), self._text)

    def latest(self) -> list[Record]:
        """The last record of each marker of each layer."""
        return [next(reversed(records.values())) for records in self._series.values()]

    def series(self, layer: str, marker: str) -> Series:
        """One marker of one layer in the order of the steps; empty where there is none."""
        rows = sorted(self._series.get((layer, marker), {}).values(), key=lambda r: r.step)
        return Series(
            layer,
            marker,
            np.array([r.step for r in rows], dtype=np.int64),
            np.array([math.nan if r.epoch is None else r.epoch for r in rows], dtype=np.float64),
            np.array([r.value for r in rows], dtype=np.float64),
            np.array([r.standard_error for r in rows], dtype=np.float64),
            np.array([r.change_error for r in rows], dtype=np.float64),
        )

    def open(
        self,
        path: str | os.PathLike[str],
        protocol: dict[str, Any] | None = None,
        panel: dict[str, Any] | None = None,
    ) -> None:
        """Write to ``path`` from now on, starting with what is in memory.

        What the same run left there is replaced, with all that came after its checkpoint. Any other file that is in the
        way, such as the history of another run, is kept as ``<name>.<n>.csv``.

        Args:
            path: of the CSV file; its directory is made.
            protocol: by which it is measured; goes into a side file of the same name with the ending ``.json``.
            panel: what is judged and how (``Panel.to_dict()``); goes there too, so that a report judges as the run did.
        """
        self._file = RunFile(Path(path))
        beside = self._file.path.with_suffix(".json")
        try:
            if self._file.path.exists() and not self._is_continued_from(self._file.path):
                free = free_name(self._file.path)
                self._file.path.rename(free)
                if beside.exists():
                    beside.rename(free.with_suffix(".json"))
        except OSError as error:
            self._file.fail(error)
            return
        self._file.write(self._text())
        if protocol is not None and self._file.path.exists():
            side = {"protocol": protocol, "panel": panel}
            with contextlib.suppress(OSError):  # the history itself has warned of it
                write_at_once(beside, json.dumps(side, indent=2, sort_keys=True) + "\n")

    @property
    def layers(self) -> tuple[str, ...]:
        """Aliases of the layers, in the order of their first record; without ``""``, the whole measurement."""
        return tuple(dict.fromkeys(layer for layer, _ in self._series if layer))

    def markers(self, layer: str) -> tuple[str, ...]:
        """Names of the markers of a layer, in the order of their first record."""
        return tuple(marker for of_layer, marker in self._series if of_layer == layer)

    @property
    def measurements(self) -> int:
        """How many measurements there are, of a run that a monitor has measured."""
        return len(self._series.get(("", SECONDS), {}))

    def to_pandas(self) -> Any:
        """All records as a ``pandas.DataFrame``, one row a record, with the columns of :class:`Record`.

        Raises:
            ImportError: pandas is not installed; it is no dependency of geomonitor.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        frame = pandas.DataFrame(list(self), columns=list(Record._fields))
        return frame.astype({"epoch": "Int64"})  # an epoch that nobody counted is missing, not a float

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Read a history file.

        A last line cut off by a kill is left out with a warning. Columns that an older version did not write are NaN.

        Raises:
            InputError: not a history file, or a broken line other than the last.
        """
        with Path(path).open(newline="", encoding="utf-8", errors="replace") as file:
            text = file.read()
        whole, cut_off = _whole_lines(text)
        try:
            rows = list(csv.reader(io.StringIO(whole, newline="")))
        except csv.Error as error:
            raise InputError(f"{path} is no history file: {error}") from error
        columns = len(rows[0]) if rows else 0
        if columns < _FEWEST_COLUMNS or tuple(rows[0]) != Record._fields[:columns]:
            raise InputError(f"{path} is no history file: its first line must be {','.join(Record._fields)}")
        if cut_off:
            warnings.warn(f"{path}: the last line was cut off and is left out", GeomonitorWarning, stacklevel=2)
        return cls(_record(row, columns, f"{path}, line {number}") for number, row in enumerate(rows[1:], start=2))

    def plot(self, markers: str | Sequence[str] | None = None, layers: str | Sequence[str] | None = None) -> Any:
        """Curves with error bands and alarms, see :func:`geomonitor.plots.plot_history`; needs matplotlib."""
        from geomonitor.plots import plot_history

        return plot_history(self, markers, layers)

    def state_dict(self) -> dict[str, Any]:
        """Plain lists, for a checkpoint that loads with ``weights_only=True``."""
        return {"records": [list(record) for record in self]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what is in memory by a saved state."""
        self._records.clear()
        self._series.clear()
        self._keep(Record(*row) for row in state["records"])
        if self._file is not None:
            self._file.outdated()

    def clear(self) -> None:
        """Forget all records; an open file is closed and stays as it is."""
        self._records.clear()
        self._series.clear()
        self._file = None

    def _keep(self, records: Iterable[Record]) -> None:
        for record in records:
            self._records[record.step, record.layer, record.marker] = record
            self._series.setdefault((record.layer, record.marker), {})[record.step] = record

    def _text(self) -> str:
        return ",".join(Record._fields) + "\r\n" + _rows(self)

    def _is_continued_from(self, path: Path) -> bool:
        """Whether a file has a record of this history: the time in it is that of no other run."""
        if not len(self):
            return False
        try:
            found = History.load(path)
        except InputError:
            return False
        ours = self._records
        return any(key in ours and _rows([ours[key]]) == _rows([there]) for key, there in found._records.items())


def _rows(records: Iterable[Record]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(records)  # floats as repr: every digit comes back
    return text.getvalue()


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
        return Record(int(step), int(epoch) if epoch else None, layer, marker, *map(float, numbers))
    except ValueError:
        raise InputError(f"{place}: expected {','.join(Record._fields)}, found {','.join(row)!r}") from None
