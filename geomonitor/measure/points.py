"""The probe's points of one measurement: collected batch by batch, gathered over the processes once, in one order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor._distributed import ALL_PROCESSES, Processes
from geomonitor.errors import InputError
from geomonitor.markers.inputs import require_matrix
from geomonitor.probe.reservoir import priority

ORDER_SEED = 0
"""Of the pseudo-random order of the points of a class. A saved reference of the drift has this order: keep it."""


class GatheredPoints(NamedTuple):
    """The points of all processes, each once, class by class."""

    rows: dict[str, Tensor]
    """``(Q, N)`` by name: features by layer, statistics of the logits by input shift"""
    classes: Tensor
    """``(Q,)`` class numbers from 0"""
    ids: Tensor
    """``(Q,)``"""


class PointBuffer:
    """Rows of this process's points, by name of what they describe; one class and one id for all rows of a point.

    Args:
        device: of the gathered rows.
        processes: that measure together.

    >>> buffer = PointBuffer(torch.device("cpu"))
    >>> buffer.add({"layer": torch.eye(2)}, classes=torch.tensor([1, 0]), ids=torch.tensor([4, 7]))
    >>> buffer.add({"layer": torch.ones(1, 2)}, classes=torch.tensor([0]), ids=torch.tensor([7]))  # 7 again
    >>> buffer.gather().rows["layer"]
    tensor([[0., 1.],
            [1., 0.]])
    """

    def __init__(self, device: torch.device, processes: Processes = ALL_PROCESSES) -> None:
        self._device = device
        self._processes = processes
        self._rows: dict[str, list[Tensor]] = {}
        self._classes: list[Tensor] = []
        self._ids: list[Tensor] = []

    def add(self, rows: Mapping[str, Tensor], *, classes: Tensor, ids: Tensor) -> None:
        """Add a batch of points.

        Args:
            rows: ``(B, N)`` by name, the same names each time; copied, since a model may write to its outputs again.
            classes: ``(B,)`` class numbers.
            ids: ``(B,)`` ids: of points with the same class and id one is kept.

        Raises:
            InputError: rows that are no real matrix, or of another width than before: here, not in :meth:`gather`,
                in which the other processes would wait.
        """
        if not len(classes):
            return
        for name, values in rows.items():
            require_matrix(values)
            held = self._rows.setdefault(name, [])
            if held and held[0].shape[1] != values.shape[1]:
                raise InputError(f"{name!r} must keep its width; got {values.shape[1]} units after {held[0].shape[1]}")
            held.append(values.detach().to(self._device, copy=True))
        self._classes.append(classes.cpu())
        self._ids.append(ids.cpu())

    def gather(self) -> GatheredPoints:
        """The points of all processes, in the same order in each; every process has to call this.

        What is returned depends neither on the batches, nor on their order, nor on the number of processes.
        """
        mine = (
            {name: torch.cat(parts) for name, parts in self._rows.items()},
            _joined(self._classes),
            _joined(self._ids),
        )
        if self._processes.size > 1:
            mine = ({name: rows.cpu() for name, rows in mine[0].items()}, *mine[1:])
        parts = [part for part in self._processes.gathered(mine) if len(part[1])]
        if not parts:
            return GatheredPoints({}, *(torch.zeros(0, dtype=torch.int64) for _ in range(2)))
        classes, ids = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
        order = _order(classes, ids)
        rows = {name: torch.cat([part[0][name] for part in parts]).to(self._device)[order] for name in parts[0][0]}
        return GatheredPoints(rows, classes[order], ids[order])


def _order(classes: Tensor, ids: Tensor) -> Tensor:
    """Positions of the points class by class, pseudo-random within a class by id alone, without repetitions."""
    order = torch.argsort(priority(ids, ORDER_SEED), stable=True)
    order = order[torch.argsort(classes[order], stable=True)]
    classes, ids = classes[order], ids[order]
    repeated = torch.zeros(len(ids), dtype=torch.bool)
    repeated[1:] = (classes[1:] == classes[:-1]) & (ids[1:] == ids[:-1])
    return order[~repeated]


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
