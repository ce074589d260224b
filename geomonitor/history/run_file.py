"""A text file that a run adds lines to, on a disk that may be full, shared with other runs, or tidied up meanwhile."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from geomonitor.errors import GeomonitorWarning
from geomonitor.history import files
from geomonitor.history.files import Handle, State, free_place, make, moved_from, remove, set_aside, side_of, write_all
from geomonitor.history.lock import locked
from geomonitor.history.run_id import id_in, new_run_id


class RunFile:
    r"""Adds lines to a file of its own; trouble with the disk is logged once, with a warning, never an error.

    A file is made under a name that is free, and never renamed over another one. A run that finds its name taken moves
    the file, with its side file, to a folder that is named by the id of its run; the run that writes to that file, and
    one that goes on from its checkpoint, find it there. If the file is gone, was cut off, or an earlier addition
    failed, all is written anew, so that a disk that has room again gets everything.

    Args:
        path: of the file; its side file has the ending ``.json``.
        side: text of the side file; None for no side file.
        run_id: names the folder beside ``path`` that the file is in if another run has the name.

    >>> import tempfile
    >>> file = RunFile(Path(tempfile.mkdtemp(), "lines.csv"))
    >>> file.take(lambda: "a\n", lambda path: False)
    >>> file.add("b\n", everything=lambda: "a\nb\n")
    >>> file.path.read_text()
    'a\nb\n'
    """

    def __init__(self, path: Path, side: str | None = None, run_id: str = "") -> None:
        self.path = self._asked = path
        self._run_id = run_id or new_run_id()
        self._side = side
        self._side_is_due = side is not None
        self._left: State | None = None
        self._handle: Handle | None = None
        self._complete = False
        self._warned = False

    def take(self, everything: Callable[[], str], is_continued: Callable[[Path], bool]) -> None:
        """Begin the file: replace what the same run left under its name, and move away anything else.

        Args:
            everything: gives what the file should hold.
            is_continued: whether a file was left by the same run.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                places = (self.path, *moved_from(self.path, self._run_id))
                mine = next((path for path in places if path.is_file() and is_continued(path)), None)
                if mine is not None:
                    self.path, self._left = mine, State.of(mine)
                    self._write_anew(everything())
                else:
                    self._create(everything(), take_over=True)
        except OSError as error:
            self.fail(error)

    def add(self, lines: str, everything: Callable[[], str]) -> None:
        """Add lines at the end.

        Args:
            lines: whole lines.
            everything: gives what the file should hold, these lines included.
        """
        try:
            if self._complete and self._append(lines):
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                self._find()
                if not (self._complete and self._append(lines)):
                    self._write_anew(everything())
        except OSError as error:
            self.fail(error)

    def beside(self, path: Path) -> Path:
        """The place of a file of this run that is kept beside its own one, now that another run may have the name.

        Args:
            path: of the file as it is asked for.

        Returns:
            ``path``, or a file of its name in the folder to which the files of this run were moved.
        """
        taken = id_in(side_of(self._asked)) not in ("", self._run_id)
        if not taken or path.parent.absolute() != self._asked.parent.absolute():
            return path
        moved = next(iter(moved_from(self._asked, self._run_id)), None) or free_place(self._asked, self._run_id)
        return moved.with_name(path.name)

    def rewrite_side(self, text: str) -> None:
        """Replace the text of the side file, now or, if the disk is full, with the next addition."""
        self._side, self._side_is_due = text, True
        if self._complete:
            self._write_side()

    def outdated(self) -> None:
        """What should be in the file is another text now: the next addition writes all anew."""
        self._complete = False

    def _append(self, lines: str) -> bool:
        """Add lines to the file as it was left; False, and nothing done, if another one stands under the name."""
        data = _encoded(lines)
        try:
            file = self.path.open("r+b", buffering=0)
        except FileNotFoundError:
            return False
        with file:
            before = State.of(file.fileno())
            if before is None or before != self._left:
                return False
            file.seek(0, os.SEEK_END)
            try:
                write_all(file, data)
            except OSError:
                with contextlib.suppress(OSError):  # the part of a line that found room would spoil the file
                    os.ftruncate(file.fileno(), before.size)
                raise
            self._left = State.of(file.fileno())
        if self._side_is_due:
            self._write_side()
        return True

    def _find(self) -> None:
        """Find the file of this run: under its name, under the one that another run gave it, or nowhere."""
        if self._is_own(self.path):
            return
        taken = self.path
        moved = next((path for path in moved_from(self._asked) if self._is_own(path)), None)
        if moved is None and not taken.exists():
            self._left = None
            return
        self.path = moved or free_place(self._asked, self._run_id)
        if self._left is not None:
            self._warn(f"another run has taken {taken}; the geometry history of this one goes on in {self.path}")
        if moved is None:
            self._left = None
        elif self._side is not None and not side_of(moved).exists():
            self._side_is_due = True

    def _is_own(self, path: Path) -> bool:
        """Whether a file is the one that was left, whatever is in it now."""
        found, left = State.of(path), self._left
        return found is not None and left is not None and found[:2] == left[:2]

    def _write_anew(self, text: str) -> None:
        """Replace the file of this run, or make one if there is none."""
        if not self._is_own(self.path):
            self._create(text, take_over=False)
            return
        if self._complete and State.of(self.path) != self._left:
            self._warn(f"{self.path} was cut off or changed by another program; it is written anew")
        beside = files.written_beside(self.path, _encoded(text))
        try:
            handle = Handle(os.open(beside, os.O_RDONLY | os.O_CLOEXEC))
            beside.replace(self.path)
        except OSError:
            remove(beside)
            raise
        self._written(handle)

    def _create(self, text: str, *, take_over: bool) -> None:
        """Make the file under its name, or under a free one if the name is taken and must not be taken over."""
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if take_over:
                set_aside(self.path)
            try:
                handle = make(self.path, _encoded(text))
                break
            except FileExistsError:
                if not take_over:
                    self.path = free_place(self._asked, self._run_id)
        self._written(handle)

    def _written(self, handle: Handle) -> None:
        self._handle, self._left, self._complete = handle, State.of(handle.number), True
        if self._side is not None:
            self._write_side()

    def _write_side(self) -> None:
        """Write the side file; if that fails, the next addition tries again."""
        path, self._side_is_due = side_of(self.path), True
        with contextlib.suppress(OSError):  # the history itself warns
            if State.of(path) is None:
                make(path, _encoded(self._side or ""))
            else:
                beside = files.written_beside(path, _encoded(self._side or ""))
                beside.replace(path)
            self._side_is_due = False

    def fail(self, error: OSError) -> None:
        """Warn once that writing does not work; the next addition tries again."""
        self._complete = False
        if not self._warned:
            self._warned = True
            self._warn(
                f"the geometry history cannot be written to {self.path} ({error}); it stays in memory and in "
                "checkpoints, and each measurement tries again"
            )

    def _warn(self, message: str) -> None:
        warnings.warn(message, GeomonitorWarning, stacklevel=5)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
