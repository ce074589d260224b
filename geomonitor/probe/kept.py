"""The batches of a probe set are read once and kept, packed, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from geomonitor.probe.apart import Read, read_apart, unpacked

MOST_BYTES = 256 * 2**20
"""Bytes of one probe set that are kept: 1,700 images of 3 x 112 x 112; a larger one is read at each measurement."""


class KeptBatches:
    """The packed batches of the latest complete reading; a copy of it, in another process for instance, is empty.

    Packed batches are what counts in the budget, and a model that writes to its inputs writes to a copy.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._pieces: list[bytes] = []
        self.readings = 0
        """how many times the data set was read"""

    @property
    def holds_batches(self) -> bool:
        """Whether a whole reading is kept: what is measured cannot change any more."""
        return bool(self._pieces)

    def inputs(self, source: Read, dataset: Any, key: Hashable) -> Iterator[Any]:
        """The batches that ``source(dataset)`` yields: those kept under ``key``, else read by ``read_apart``.

        Args:
            source: as in :func:`geomonitor.probe.apart.read_apart`.
            dataset: likewise.
            key: equal for equal batches.
        """
        if self._key != key or not self._pieces:
            yield from self._read(source, dataset, key)
        else:
            yield from map(unpacked, self._pieces)

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptBatches, ()

    def _read(self, source: Read, dataset: Any, key: Hashable) -> Iterator[Any]:
        self.readings += 1
        pieces: list[bytes] = []
        total = 0
        for piece in read_apart(source, dataset):
            total += len(piece)
            if total <= MOST_BYTES:
                pieces.append(piece)
            else:
                pieces.clear()
            yield unpacked(piece)
        self._key, self._pieces = key, pieces
