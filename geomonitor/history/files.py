"""Making and moving files that several runs may reach for at the same time: nothing is renamed over another file."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from geomonitor.history.run_id import id_in, new_run_id


class State(NamedTuple):
    """Which file stands under a name, and how long it is."""

    device: int
    inode: int
    size: int

    @classmethod
    def of(cls, path: Path | int) -> State | None:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return cls(found.st_dev, found.st_ino, found.st_size)


class Handle:
    """A file held open, so that the file system does not give its number to another one; a copy of it is None."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.number)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def side_of(path: Path) -> Path:
    """The side file of a history file."""
    return path.with_suffix(".json")


def state_of(path: Path) -> Path:
    """The state of its monitor, which adapters of some frameworks keep beside a history file."""
    return path.with_suffix(".pt")


def make(path: Path, data: bytes) -> Handle:
    """Make a file, all or nothing, under a name that is free, and hold it open.

    Raises:
        FileExistsError: the name is taken.
    """
    beside = written_beside(path, data)
    try:
        handle = Handle(os.open(beside, os.O_RDONLY | os.O_CLOEXEC))
        try:
            path.hardlink_to(beside)  # in one step, and never over another file
            return handle
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            with path.open("xb", buffering=0) as file:
                try:
                    write_all(file, data)
                except OSError:
                    remove(path)
                    raise
                return Handle(os.dup(file.fileno()))
    finally:
        remove(beside)


def set_aside(path: Path) -> None:
    """Move a file, its side file and the state beside it, if they exist, to a folder of their run, named by its id."""
    run_id = id_in(side_of(path)) or new_run_id()
    while path.exists() or side_of(path).exists():
        free = free_place(path, run_id)
        free.parent.mkdir(exist_ok=True)
        try:
            _move(path, free)
            _move(side_of(path), side_of(free))
            _move(state_of(path), state_of(free))
        except FileExistsError:  # another run has just taken the place
            continue
        with contextlib.suppress(OSError):
            free.parent.rmdir()  # empty where another run was faster


def _move(source: Path, target: Path) -> None:
    """Rename a file, if there is one, to a name that is free.

    Raises:
        FileExistsError: the name is taken.
    """
    if not source.exists():
        return
    if source.is_dir():
        source.rename(target)  # replaces nothing but an empty directory
        return
    target.open("xb").close()  # the renaming replaces this empty file, and no other
    try:
        source.rename(target)
    except FileNotFoundError:  # another run has just moved it
        remove(target)
    except OSError:
        remove(target)
        raise


def free_place(path: Path, run_id: str) -> Path:
    """``<id>/name.csv``, or with the first of ``<id>-2``, ... that has no such history, side file or state."""
    folders = itertools.chain([run_id], (f"{run_id}-{number}" for number in itertools.count(2)))
    places = (path.parent / folder / path.name for folder in folders)
    return next(p for p in places if not any(file.exists() for file in (p, side_of(p), state_of(p))))


def moved_from(path: Path, run_id: str = "") -> list[Path]:
    """Files of this name in folders beside it, to which runs are moved; of one run, or of all of them."""
    return sorted(path.parent.glob(f"{run_id}*/{glob.escape(path.name)}"))


def written_beside(path: Path, data: bytes) -> Path:
    """Write a temporary file under a name that no other run uses."""
    beside = path.with_name(f"{path.name}.partial")
    try:
        file = beside.open("xb", buffering=0)
    except FileExistsError:  # of another run, or left by a kill
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        file = beside.open("xb", buffering=0)
    try:
        with file:
            write_all(file, data)
    except OSError:
        remove(beside)
        raise
    return beside


def write_all(file: object, data: bytes) -> None:
    """Write to an unbuffered file, in as many parts as the system takes."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]  # type: ignore[attr-defined]


def remove(path: Path) -> None:
    """Remove a file if that is possible."""
    with contextlib.suppress(OSError):
        path.unlink()
