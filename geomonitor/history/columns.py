"""One marker of one layer as columns of numbers: 48 bytes a record, appended to in constant time."""

from __future__ import annotations

import bisect
import operator
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomonitor.errors import InputError
from geomonitor.history.records import Record, Series

NO_EPOCH = int(np.iinfo(np.int64).min)
"""Stands for an epoch that is None."""
INTEGERS = ("steps", "epochs")
FLOATS = ("values", "standard_errors", "times", "change_errors")
_LARGEST = int(np.iinfo(np.int64).max)


class Column:
    """The records of one marker of one layer, in the order in which they came; one record a step.

    >>> column = Column("fc", "dimension")
    >>> column.put(Record(10, 0, "fc", "dimension", 2.5)), column.put(Record(10, 0, "fc", "dimension", 2.4))
    (True, False)
    >>> column.series().values
    array([2.4])
    """

    __slots__ = ("_places", "layer", "marker", *INTEGERS, *FLOATS)

    steps: array[int]
    epochs: array[int]
    values: array[float]
    standard_errors: array[float]
    times: array[float]
    change_errors: array[float]

    def __init__(self, layer: str, marker: str) -> None:
        self.layer, self.marker = str(layer), str(marker)
        for name in INTEGERS:
            setattr(self, name, array("q"))
        for name in FLOATS:
            setattr(self, name, array("d"))
        self._places: dict[int, int] | None = None  # by step, once the steps are no longer in order

    def __len__(self) -> int:
        return len(self.steps)

    def put(self, record: Record) -> bool:
        """Add a record, or replace the one of the same step; whether it was added.

        Raises:
            InputError: a step or an epoch that is no integer of 64 bits, a value that is no number.
        """
        numbers = _numbers(record)
        place = self.find(record.step)
        if place is not None:
            for numbers_of, number in zip(self._all(), numbers, strict=True):
                numbers_of[place] = number
            return False
        if self._places is None and len(self) and record.step < self.steps[-1]:
            self._places = {step: n for n, step in enumerate(self.steps)}
        if self._places is not None:
            self._places[record.step] = len(self)
        for numbers_of, number in zip(self._all(), numbers, strict=True):
            numbers_of.append(number)
        return True

    def find(self, step: int) -> int | None:
        """Place of the record of a step; None if there is none."""
        if self._places is not None:
            return self._places.get(step)
        if not len(self) or step > self.steps[-1]:
            return None
        place = bisect.bisect_left(self.steps, step)
        return place if self.steps[place] == step else None

    def record(self, place: int) -> Record:
        """The record at a place; -1 is the last one."""
        step, epoch, *floats = (numbers[place] for numbers in self._all())
        return Record(step, None if epoch == NO_EPOCH else epoch, self.layer, self.marker, *floats)

    def records(self) -> Iterator[Record]:
        """All records in the order in which they came."""
        for step, epoch, *floats in zip(*self._all(), strict=True):
            yield Record(step, None if epoch == NO_EPOCH else epoch, self.layer, self.marker, *floats)

    def series(self) -> Series:
        """The records in the order of the steps."""
        numbers = {name: self.array(name) for name in (*INTEGERS, *FLOATS)}
        if self._places is not None:
            order = np.argsort(numbers["steps"], kind="stable")
            numbers = {name: values[order] for name, values in numbers.items()}
        epochs = numbers["epochs"].astype(np.float64)
        epochs[numbers["epochs"] == NO_EPOCH] = np.nan
        return Series(
            self.layer,
            self.marker,
            numbers["steps"],
            epochs,
            numbers["values"],
            numbers["standard_errors"],
            numbers["change_errors"],
        )

    def array(self, name: str) -> NDArray[Any]:
        """A copy of the numbers of one name in ``INTEGERS`` or ``FLOATS``."""
        return np.array(getattr(self, name))  # a view would keep the column from growing

    def fill(self, numbers: dict[str, NDArray[Any]]) -> None:
        """Replace all numbers, as :meth:`array` gave them."""
        for name, values in numbers.items():
            column = array("q" if name in INTEGERS else "d")
            column.frombytes(values.tobytes())
            setattr(self, name, column)
        ascending = bool((np.diff(numbers["steps"]) > 0).all())
        self._places = None if ascending else {step: n for n, step in enumerate(self.steps)}

    def _all(self) -> tuple[Any, ...]:
        return self.steps, self.epochs, self.values, self.standard_errors, self.times, self.change_errors


def _numbers(record: Record) -> tuple[float, ...]:
    step, epoch, _, _, *floats = record
    try:
        whole = operator.index(step), NO_EPOCH if epoch is None else operator.index(epoch)
        numbers = (*whole, *map(float, floats))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"step and epoch of a record are whole numbers, the rest are floats ({error})") from error
    if not all(-_LARGEST <= number <= _LARGEST for number in whole if number != NO_EPOCH):
        raise InputError("step and epoch of a record must fit into 64 bits")
    return numbers
