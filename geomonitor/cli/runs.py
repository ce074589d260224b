"""The runs that a command line names: by directory, by a directory above them, by file or by id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geomonitor.cli.terminal import message
from geomonitor.errors import InputError
from geomonitor.history.runs import Run, find_runs, read_run


def loaded(paths: Sequence[Path]) -> list[Run]:
    """Read all runs, each once; of several, one that cannot be read is left out with a warning.

    Raises:
        InputError: no run, or none that can be read.
    """
    files = list(dict.fromkeys(file for path in paths for file in find_runs(path)))
    if len(files) == 1:
        return [read_run(files[0])]
    found = []
    for file in files:
        try:
            found.append(read_run(file))
        except InputError as error:
            message("warning", error)
    if not found:
        raise InputError(f"none of {len(files)} runs can be read")
    return found
