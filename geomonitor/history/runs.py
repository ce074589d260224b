"""A run on disk: the directory that a callback, a loop or ``geomonitor scan`` left, found and read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from geomonitor.errors import InputError
from geomonitor.history.history import History
from geomonitor.history.saved import SavedCheckpoint

HISTORY_FILE = "geometry.csv"
"""Name of the history in the directory of a run; the protocol stands beside it in ``geometry.json``."""


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


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run.

    Args:
        path: a history file, or a directory with one ``geometry.csv`` in it or somewhere below it.

    Raises:
        InputError: no history there, several of them, an empty one, or files that are damaged.
    """
    file = _history_file(Path(path))
    try:
        history = History.load(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no history file: {error}") from error
    if not len(history):
        raise InputError(f"{file} holds no measurement yet: train until the first one is made")
    name = file.resolve().parent.name if file.name == HISTORY_FILE else file.stem
    return Run(name, file, history, *read_side_file(file.with_suffix(".json")))


def _history_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise InputError(f"{path} does not exist: give the directory of a run, where {HISTORY_FILE} lies")
    if (path / HISTORY_FILE).is_file():
        return path / HISTORY_FILE
    below = sorted(path.rglob(HISTORY_FILE))
    if not below:
        raise InputError(f"there is no {HISTORY_FILE} in {path} or below it: give the directory of a run")
    if len(below) > 1:
        listed = ", ".join(str(file.parent) for file in below[:5]) + (", ..." if len(below) > 5 else "")
        raise InputError(f"{path} holds {len(below)} runs; name one of them: {listed}")
    return below[0]


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
