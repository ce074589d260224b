"""The runs that a command line names: by directory, by a directory above them, by file or by id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geomonitor.cli.terminal import message
from geomonitor.errors import InputError
from geomonitor.history.runs import Run, find_runs, named, others_beside, read_run


def loaded(paths: Sequence[Path]) -> list[Run]:
    """Read all runs, each once; of several, one that cannot be read is left out with a warning.

    A directory that a run lies in stands for its latest run; what else is there is named on standard error.

    Raises:
        InputError: no run, or none that can be read.
    """
    files = list(dict.fromkeys(file for path in paths for file in find_runs(path)))
    if len(files) == 1:
        if paths[0].is_dir() and (others := others_beside(files[0])):
            listed = ", ".join(named(file) for file in others[:5]) + (", ..." if others[5:] else "")
            message("note", f"also in {files[0].parent}: {listed}")
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
