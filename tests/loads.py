"""Which items a dataset has loaded, in whatever process."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path


class Loads:
    """A list of integers that all processes write to: it lies in a file, which is opened anew for each entry."""

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self._path = Path(name)
        weakref.finalize(self, os.unlink, name)

    def append(self, index: int) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{index}\n")

    def clear(self) -> None:
        self._path.write_text("", encoding="utf-8")

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> list[int]:
        return [int(line) for line in self._path.read_text(encoding="utf-8").split()]
