"""A process that was forked gets positions of its own in the files that it inherited open."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OPEN_FILES = Path("/proc/self/fd")
_STANDARD_STREAMS = 3
"""Descriptors 0, 1 and 2: what a child prints goes where its parent prints."""


@contextmanager
def own_handles() -> Iterator[None]:
    """Inside the block, what is read through inherited handles does not move those of the parent process.

    After a fork both processes share the position in each open file: to read in one is to move the other. Each file
    that can be read is opened again and put in the place of the inherited handle, at the same position. If the system
    refuses that, the position is put back at the end. A connection cannot be opened again: its end here leads nowhere,
    so that a use of it is an error, instead of half an answer taken from the parent. To be called in the child only.

    Yields:
        Nothing.
    """
    moved = leave_open_handles()
    try:
        yield
    finally:
        for handle, position in moved.items():
            with suppress(OSError):
                os.lseek(handle, position, os.SEEK_SET)


def leave_open_handles() -> dict[int, int]:
    """As :func:`own_handles`, without an end.

    Returns:
        Positions to put back at the end, of the files that could not be opened again.
    """
    moved: dict[int, int] = {}
    for handle in _open_handles():
        with suppress(OSError):  # closed since, or not seekable
            mode = os.fstat(handle).st_mode
            if stat.S_ISREG(mode) and handle >= _STANDARD_STREAMS:
                position = os.lseek(handle, 0, os.SEEK_CUR)
                try:
                    _open_again(handle, position)
                except OSError:
                    moved[handle] = position
            elif stat.S_ISSOCK(mode) and handle >= _STANDARD_STREAMS:
                _replace(handle, os.open(os.devnull, os.O_RDWR))
    return moved


def in_worker(_number: int) -> None:
    """As :func:`leave_open_handles`, for the workers of a loader."""
    leave_open_handles()


def _open_handles() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_OPEN_FILES)]
    except OSError:  # no Linux
        return []


def _open_again(handle: int, position: int) -> None:
    import fcntl  # not on every platform; this is called on Linux only

    flags = fcntl.fcntl(handle, fcntl.F_GETFL) & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
    if flags & os.O_ACCMODE != os.O_WRONLY:
        again = os.open(_OPEN_FILES / str(handle), flags)
        os.lseek(again, position, os.SEEK_SET)
        _replace(handle, again)


def _replace(handle: int, other: int) -> None:
    os.dup2(other, handle, inheritable=os.get_inheritable(handle))
    os.close(other)
