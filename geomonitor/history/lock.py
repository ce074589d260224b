"""A lock by which runs that start in one directory at the same time take turns."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

LONGEST_WAIT = 30.0
"""Seconds after which a run goes on without the lock: the file is held for milliseconds, or its holder is stopped."""
_PAUSE = 0.005


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Keep other runs from moving files of this name; whether the lock was got.

    Without it (a file system without locks, a directory that is read-only) files are still made and moved under free
    names only, so no history is lost; but a side file may come to lie beside the history of another run.

    Args:
        path: what is locked; the lock is a file beside it, which is removed afterwards.
    """
    lock = path.with_name(f".{path.name}.lock")
    handle = _take(lock)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(handle)


def _take(lock: Path) -> int | None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    latest = time.monotonic() + LONGEST_WAIT
    while time.monotonic() < latest:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(lock), os.fstat(handle)):  # else its holder has just removed it
                return handle
        except BlockingIOError:
            time.sleep(_PAUSE)
        except FileNotFoundError:
            pass
        except OSError:  # no locks here
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(handle)
            return None
        os.close(handle)
    return None
