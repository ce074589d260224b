"""A text file that a run adds lines to, on a disk that may be full, shared with other runs, or tidied up meanwhile."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from geomonitor.errors import GeomonitorWarning


class _State(NamedTuple):
    """Which file stands under a name, and how long it is."""

    device: int
    inode: int
    size: int

    @classmethod
    def of(cls, path: Path) -> _State | None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return cls(found.st_dev, found.st_ino, found.st_size)

    def is_same_file_as(self, other: _State | None) -> bool:
        return other is not None and (self.device, self.inode) == (other.device, other.inode)


class RunFile:
    r"""Adds lines to a file of its own; trouble with the disk is warned of once, never an error.

    Before each addition it looks whether the file is still the one that it left. If another run has taken the name, it
    goes on under a free one. If the file is gone, was cut off, or an earlier addition failed, it writes all anew, so
    that a disk that has room again gets everything.

    >>> import tempfile
    >>> file = RunFile(Path(tempfile.mkdtemp(), "lines.csv"))
    >>> file.write("a\n")
    >>> file.add("b\n", everything=lambda: "a\nb\n")
    >>> file.path.read_text()
    'a\nb\n'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._left: _State | None = None
        self._complete = False
        self._told = False

    def write(self, text: str) -> None:
        """Replace the file by ``text``."""
        try:
            self._replace(text)
        except OSError as error:
            self.fail(error)

    def add(self, lines: str, everything: Callable[[], str]) -> None:
        """Add lines at the end.

        Args:
            lines: whole lines.
            everything: gives what the file should hold, these lines included.
        """
        try:
            found = _State.of(self.path)
            if found is not None and not found.is_same_file_as(self._left):
                self._make_way()
                found = None
            if found is not None and found != self._left and self._complete:
                self._say(f"{self.path} was cut off or changed by someone else; it is written anew")
            if found is not None and found == self._left and self._complete:
                self._append(lines, found)
            else:
                self._replace(everything())
        except OSError as error:
            self.fail(error)

    def outdated(self) -> None:
        """What should be in the file is another text now: the next addition writes all anew."""
        self._complete = False

    def _append(self, lines: str, before: _State) -> None:
        try:
            with self.path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
                file.write(lines)
        except OSError:
            with contextlib.suppress(OSError):  # the part of a line that found room would spoil the file
                os.truncate(self.path, before.size)
            raise
        self._left = _State.of(self.path)

    def _replace(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_at_once(self.path, text)
        self._left, self._complete = _State.of(self.path), True

    def _make_way(self) -> None:
        taken, self.path = self.path, free_name(self.path)
        if self._left is not None:
            self._say(f"another run has taken {taken}; the geometry history of this one goes on in {self.path}")

    def fail(self, error: OSError) -> None:
        """Say once that writing does not work; the next addition tries again."""
        self._complete = False
        if not self._told:
            self._told = True
            self._say(
                f"the geometry history cannot be written to {self.path} ({error}); it stays in memory and in "
                "checkpoints, and each measurement tries again"
            )

    def _say(self, message: str) -> None:
        warnings.warn(message, GeomonitorWarning, stacklevel=5)


def write_at_once(path: Path, text: str) -> None:
    """All or nothing: a kill or a full disk leaves the old file or the new one, never half of it."""
    beside = path.with_name(path.name + ".partial")
    try:
        with beside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def free_name(path: Path) -> Path:
    """``name.1.csv``, or the first number that is not taken."""
    number = 1
    while (candidate := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return candidate
