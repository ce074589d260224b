"""A run on disk: the directory that a callback, a loop or ``geomonitor scan`` left, found and read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from geomonitor.errors import InputError
from geomonitor.history.files import side_of
from geomonitor.history.history import History
from geomonitor.history.run_id import id_in, is_run_id
from geomonitor.history.saved import SavedCheckpoint

HISTORY_FILE = "geometry.csv"
"""Name of the history in the directory of a run; the protocol stands beside it in ``geometry.json``."""
NAMED_FILES = "geometry_*.csv"
"""Histories of callbacks that have a name."""

RUNS_FOLDER = "geomonitor_runs"
"""Holds a folder for each run, named by its id, if neither a directory nor a logger keeps runs apart."""
_SEARCHED = 3
"""Levels of folders that are searched for an id: ``lightning_logs/version_0`` has two."""
_DEEPEST = 50
"""Levels of a side file; what is much deeper cannot be compared or shown."""


class Run(NamedTuple):
    """What a run left."""

    name: str
    """of its directory, or of the file if that is not called ``geometry.csv``"""
    path: Path
    """of the history file"""
    history: History
    protocol: dict[str, Any]
    """empty if there is no side file"""
    panel: dict[str, Any] | None = None
    """what was judged and how, as ``Panel.to_dict()`` gives it; None if that is not recorded"""
    last_healthy: SavedCheckpoint | None = None
    """the last checkpoint from before a decline, if the run kept one"""
    id: str = ""
    """that its loggers and checkpoints also have; "" if it is not recorded"""


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run.

    Args:
        path: a history file, a directory with one ``geometry.csv`` in it or somewhere below it, or the id of a run that
            lies up to three folders below the working directory; ``DIRECTORY/ID`` for one below another directory.

    Raises:
        InputError: no history there, several of them, an empty one, or files that are damaged.
    """
    files = find_runs(path)
    if len(files) > 1:
        listed = ", ".join(named(file) for file in files[:5]) + (", ..." if len(files) > 5 else "")
        raise InputError(f"{path} holds {len(files)} runs; name one of them: {listed}")
    return read_run(files[0])


def find_runs(path: str | os.PathLike[str]) -> list[Path]:
    """The history files that a path stands for, one at least; see :func:`load_run`.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.exists():
        if found := _of_id(path.parent, path.name):
            return found
        raise InputError(
            f"{path} does not exist: give the directory of a run, where {HISTORY_FILE} lies, or its run id"
        )
    if (path / HISTORY_FILE).is_file():
        return [path / HISTORY_FILE]
    below = sorted(path.rglob(HISTORY_FILE)) or [f for f in sorted(path.rglob(NAMED_FILES)) if side_of(f).is_file()]
    if not below:
        raise InputError(f"there is no {HISTORY_FILE} in {path} or below it: give the directory of a run")
    return below


def read_run(file: Path) -> Run:
    """Read a history file, and the side file beside it.

    Raises:
        InputError: an empty history, or files that are damaged.
    """
    try:
        history = History.load(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no history file: {error}") from error
    if not len(history):
        raise InputError(f"{file} holds no measurement yet: train until the first one is made")
    name = file.resolve().parent.name if file.name == HISTORY_FILE else file.stem
    side = side_of(file)
    return Run(name, file, history, *read_side_file(side), id_in(side))


def _of_id(folder: Path, run_id: str) -> list[Path]:
    """The histories of a run up to ``_SEARCHED`` folders below a folder."""
    if not is_run_id(run_id):
        return []
    sides = [side for depth in range(_SEARCHED + 1) for side in folder.glob("*/" * depth + "geometry*.json")]
    return sorted(file for side in sides if id_in(side) == run_id and (file := side.with_suffix(".csv")).is_file())


def others_beside(file: Path) -> list[Path]:
    """Histories of other callbacks in the folder of a run, and of other runs in folders below it."""
    folder = file.parent
    found = [*sorted(folder.glob(NAMED_FILES)), *sorted(folder.glob("*/geometry*.csv"))]
    return [other for other in found if other != file and id_in(side_of(other))]


def named(file: Path) -> str:
    """A run for a person: its folder, or the file of a callback that has a name, and its id."""
    run_id, where = id_in(side_of(file)), file.parent if file.name == HISTORY_FILE else file
    return f"{where}" + (f" (run {run_id})" if run_id else "")


def read_side_file(file: Path) -> tuple[dict[str, Any], dict[str, Any] | None, SavedCheckpoint | None]:
    """Protocol, panel and last healthy checkpoint in a side file; ``({}, None, None)`` if there is none.

    Version 0.1.0.dev0 wrote the protocol alone.

    Raises:
        InputError: not a JSON object of that form.
    """
    if not file.is_file():
        return {}, None, None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON ({error}): mend it, or move it away") from error
    side = found if isinstance(found, dict) and isinstance(found.get("protocol"), dict) else {"protocol": found}
    protocol, panel = side["protocol"], side.get("panel")
    if _depth(found) > _DEEPEST:
        raise InputError(f"{file} is nested more than {_DEEPEST} deep: mend it, or move it away")
    if not isinstance(protocol, dict) or not (panel is None or isinstance(panel, dict)):
        raise InputError(f"{file} must hold the protocol as a JSON object: mend it, or move it away")
    return protocol, panel, SavedCheckpoint.of(side.get("last_healthy"))


def _depth(found: Any) -> int:
    """Levels of lists and objects, counted without recursion."""
    level, depth = [found], 0
    while level and depth <= _DEEPEST:
        inner = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        ]
        level, depth = [value for values in inner for value in values], depth + 1
    return depth
