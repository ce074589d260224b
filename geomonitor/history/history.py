"""All records of a run, in memory and in an append-only CSV file."""

from __future__ import annotations

import html
import json
import os
import warnings
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from geomonitor import _options
from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.history.columns import Column
from geomonitor.history.files import moved_from
from geomonitor.history.lines import HEADER, lines_of, read_records
from geomonitor.history.records import SECONDS, Record, Series
from geomonitor.history.run_file import RunFile
from geomonitor.history.run_id import is_run_id, new_run_id
from geomonitor.history.state import from_state, to_state
from geomonitor.markers.table import MARKERS


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
        self._columns: list[Column] = []
        self._by_name: dict[str, dict[str, int]] = {}  # layer, marker: number of its column
        self._order = array("i")  # of each record, the number of its column
        self._is_whole = True  # False: of a state without the history, which is still to be read from the file
        self._file: RunFile | None = None
        self._side: dict[str, Any] | None = None
        self.run_id = new_run_id()
        """names the run in its side file, its checkpoints and its loggers"""
        self._keep(_checked(records))

    def __iter__(self) -> Iterator[Record]:
        rows = [column.records() for column in self._columns]
        return (next(rows[code]) for code in self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __repr__(self) -> str:
        layers = ", ".join(self.layers[:5]) + (", ..." if len(self.layers) > 5 else "")
        last = max((record.step for record in self.latest()), default=None)
        span = "" if last is None else f" up to step {last}, layers: {layers or 'none'}"
        return f"History({self.longest} measurements{span})"

    def _repr_html_(self) -> str:
        from geomonitor.alarms.status import status_of

        return f"<code>{html.escape(repr(self))}</code>{status_of(self)._repr_html_()}"

    @property
    def path(self) -> Path | None:
        """The file that is written, if any; another one than was opened where another run has taken its name."""
        return None if self._file is None else self._file.path

    def whereabouts(self) -> dict[str, str]:
        """The id of the run, and the path of its file ("" if none is written), for the configuration of a logger."""
        return {"id": self.run_id, "history": "" if self.path is None else str(self.path.absolute())}

    def beside(self, path: Path) -> Path:
        """The place of a file that is kept beside the history; see ``RunFile.beside``."""
        return path if self._file is None else self._file.beside(path)

    def append(self, records: Iterable[Record]) -> None:
        """Keep records and write them to the file; a full or read-only disk is warned of, never an error."""
        records = _checked(records)
        self._keep(records)
        if self._file is not None:
            self._file.add(lines_of(records), self._text)

    def latest(self) -> list[Record]:
        """The last record of each marker of each layer."""
        return [column.record(-1) for column in self._columns]

    def series(self, layer: str, marker: str) -> Series:
        """One marker of one layer in the order of the steps; empty if there is none."""
        layer, marker = _options.text("layer", layer), _options.text("marker", marker)
        number = self._by_name.get(layer, {}).get(marker)
        return (Column(layer, marker) if number is None else self._columns[number]).series()

    def open(
        self,
        path: str | os.PathLike[str],
        protocol: dict[str, Any] | None = None,
        panel: dict[str, Any] | None = None,
    ) -> None:
        """Write to ``path`` from now on, starting with what is in memory.

        What the same run left there is replaced, with all that came after its checkpoint. Any other file that is in the
        way, such as the history of another run, is moved to a folder that is named by the id of its run.

        Args:
            path: of the CSV file; its directory is made.
            protocol: by which it is measured; goes into a side file of the same name with the ending ``.json``, and so
                does ``run_id``.
            panel: what is judged and how (``Panel.to_dict()``); goes there too, so that a report judges as the run did.
        """
        self._side = None if protocol is None else {"protocol": protocol, "panel": panel, "run_id": self.run_id}
        side = None if self._side is None else _side_text(self._side)
        self._file = RunFile(_options.path("path", path), side, self.run_id)
        self._make_whole(self._file.path)
        self._file.take(self._text, self._is_continued_from)

    def note(self, name: str, value: Any) -> None:
        """Write an entry into the side file, beside protocol and panel; nothing if there is no side file."""
        if self._file is None or self._side is None or self._side.get(name) == value:
            return
        self._side = {**self._side, name: value}
        self._file.rewrite_side(_side_text(self._side))

    @property
    def layers(self) -> tuple[str, ...]:
        """Aliases of the layers, in the order of their first record; without ``""``, the whole measurement."""
        return tuple(layer for layer, markers in self._by_name.items() if layer and not _of_router(markers))

    @property
    def routers(self) -> tuple[str, ...]:
        """Paths of the routers of a mixture of experts, of which markers of routing alone are measured."""
        return tuple(layer for layer, markers in self._by_name.items() if layer and _of_router(markers))

    def markers(self, layer: str) -> tuple[str, ...]:
        """Names of the markers of a layer, in the order of their first record."""
        return tuple(self._by_name.get(_options.text("layer", layer), ()))

    @property
    def measurements(self) -> int:
        """How many measurements there are, of a run that a monitor has measured."""
        number = self._by_name.get("", {}).get(SECONDS)
        return 0 if number is None else len(self._columns[number])

    @property
    def longest(self) -> int:
        """Measurements of the marker that has most."""
        return max(map(len, self._columns), default=0)

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
        return frame.astype({"epoch": "Int64"})  # an epoch that was not counted is missing, not a float

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Read a history file.

        A last line cut off by a kill is left out with a warning. Columns that an older version did not write are NaN.

        Raises:
            InputError: not a history file, or a broken line other than the last.
        """
        return cls(read_records(_options.path("path", path)))

    def plot(self, markers: str | Sequence[str] | None = None, layers: str | Sequence[str] | None = None) -> Any:
        """Curves with error bands and alarms, see :func:`geomonitor.plots.plot_history`; needs matplotlib."""
        from geomonitor.plots import plot_history

        return plot_history(self, markers, layers)

    def state_dict(self, *, whole: bool = True) -> dict[str, Any]:
        """Tensors and names, for a checkpoint that loads with ``weights_only=True``; 8 to 24 bytes a record.

        Args:
            whole: False for the last record of each marker alone: :meth:`open` finds the file by it, and reads the
                rest from there.
        """
        if _options.flag("whole", whole) and self._is_whole:
            return {"run_id": self.run_id, "whole": True, **to_state(self._columns, self._order)}
        return {"run_id": self.run_id, "whole": False, **History(self.latest())._state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what is in memory by a saved state, also by one of version 0.1.0.dev0, a list of records.

        Raises:
            InputError: a damaged state; what is in memory stays.
        """
        _options.instance("state", state, Mapping, "the state_dict() of a History")
        if "records" in state:
            loaded = History(Record(*row) for row in state["records"])
            columns, order = loaded._columns, loaded._order
        else:
            columns, order = from_state(state)
        self._columns, self._order = columns, order
        self._is_whole = bool(state.get("whole", True))
        if is_run_id(state.get("run_id")):  # a state of another version may have none
            self.run_id = state["run_id"]
        self._by_name = {}
        for number, column in enumerate(columns):
            self._by_name.setdefault(column.layer, {})[column.marker] = number
        if self._file is not None:
            self._make_whole(self._file.path)
            self._file.outdated()

    def clear(self) -> None:
        """Forget all records; an open file is closed and stays as it is."""
        self.load_state_dict({"records": ()})
        self._file, self.run_id = None, new_run_id()

    def _state(self) -> dict[str, Any]:
        return to_state(self._columns, self._order)

    def _keep(self, records: Iterable[Record]) -> None:
        for record in records:
            of_layer = self._by_name.get(record.layer)
            number = None if of_layer is None else of_layer.get(record.marker)
            column = Column(record.layer, record.marker) if number is None else self._columns[number]
            added = column.put(record)
            if number is None:
                number = len(self._columns)
                self._by_name.setdefault(record.layer, {})[record.marker] = number
                self._columns.append(column)
            if added:
                self._order.append(number)

    def _text(self) -> str:
        return HEADER + lines_of(self)

    def _is_continued_from(self, path: Path) -> bool:
        """Whether a file has a record of this history: the time in it is in no other run."""
        try:
            return len(self) > 0 and any(self._has(record) for record in read_records(path))
        except InputError:
            return False

    def _continued(self, path: Path) -> list[Record] | None:
        """The records in a file if it has one of this history."""
        try:
            found = list(read_records(path)) if path.is_file() else []
        except (InputError, OSError):
            return None
        return found if any(self._has(record) for record in reversed(found)) else None

    def _has(self, record: Record) -> bool:
        number = self._by_name.get(record.layer, {}).get(record.marker)
        place = None if number is None else self._columns[number].find(record.step)
        # As text: NaN equals NaN.
        return number is not None and place is not None and repr(self._columns[number].record(place)) == repr(record)

    def _make_whole(self, path: Path) -> None:
        """Read what a state without the history lacks from the file that the run left there."""
        if self._is_whole:
            return
        latest = self.latest()
        last = max((record.step for record in latest), default=-1)
        self._is_whole = True
        left = next(
            (found for file in (path, *moved_from(path, self.run_id)) if (found := self._continued(file))), None
        )
        if left is None and latest:
            warnings.warn(
                f"the history up to step {last} is neither in the checkpoint (checkpoint_history=False) nor in "
                f"{path}: its curves begin at step {last}",
                GeomonitorWarning,
                stacklevel=4,
            )
        loaded = History(record for record in left or () if record.step <= last)
        loaded._keep(latest)
        self._columns, self._by_name, self._order = loaded._columns, loaded._by_name, loaded._order


def _of_router(markers: Iterable[str]) -> bool:
    return all(marker in MARKERS and MARKERS[marker].state == "routing" for marker in markers)


def _side_text(side: dict[str, Any]) -> str:
    return json.dumps(side, indent=2, sort_keys=True) + "\n"


def _checked(records: Any) -> list[Record]:
    _options.instance("records", records, Iterable, "Records")
    return [_options.instance("each of records", record, Record, "a Record") for record in records]
