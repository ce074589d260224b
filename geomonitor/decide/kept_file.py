"""A second name for a checkpoint that another program will delete: a hard link, or a copy if the disk has no links."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from geomonitor.history.files import State


class KeptFile:
    """A link to a checkpoint under a name of its own; what stands under a name already is never replaced.

    A hard link takes no room while the original exists. A folder is linked file by file.

    Args:
        path: of the link.
        identity: device and inode of the link, by which it is recognised before it is deleted.
    """

    def __init__(self, path: Path, identity: tuple[int, int]) -> None:
        self.path = path
        self.identity = identity

    @classmethod
    def link(cls, original: Path, path: Path) -> KeptFile:
        """Link a checkpoint under ``path``, or under ``path`` with a number if that name is taken.

        Raises:
            OSError: no original, no room for a copy, no permission.
        """
        path = free_name(path)
        try:
            if original.is_dir():
                shutil.copytree(original, path, copy_function=_link_or_copy)
            else:
                _link_or_copy(original, path)
        except (OSError, shutil.Error) as error:
            cls.at(path, default=cls(path, (-1, -1))).remove()
            raise OSError(str(error)) from error
        return cls.at(path)

    @classmethod
    def at(cls, path: Path, default: KeptFile | None = None) -> KeptFile:
        """What stands under a name now.

        Raises:
            FileNotFoundError: nothing, and no default.
        """
        found = State.of(path)
        if found is None:
            if default is None:
                raise FileNotFoundError(f"{path} does not exist")
            return default
        return cls(path, found[:2])

    @property
    def exists(self) -> bool:
        """Whether the link is still there, and no other file under its name."""
        found = State.of(self.path)
        return found is not None and found[:2] == self.identity

    def remove(self) -> None:
        """Delete the link, unless another file has its name by now."""
        if not self.exists:
            return
        if self.path.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """The path, or with ``-v1``, ``-v2``, ... before its ending: the first one that is free, and free for a mark."""
    numbered = (path.with_name(f"{path.stem}-v{n}{path.suffix}") for n in itertools.count(1))
    names = itertools.chain([path], numbered)
    return next(name for name in names if not os.path.lexists(name) and not os.path.lexists(mark_of(name)))


def mark_of(path: Path) -> Path:
    """The file beside a kept checkpoint that names its step and its run."""
    return path.with_name(f"{path.name}.json")


def _link_or_copy(original: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    source = Path(original).resolve()  # the file, not a symbolic link that will point to another one
    try:
        Path(path).hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copy2(source, path)
