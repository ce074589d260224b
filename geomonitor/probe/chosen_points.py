"""The points of a probe set, and how they are loaded: the same batches at every measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from geomonitor import _options
from geomonitor.errors import MeasurementError
from geomonitor.probe.apart import is_in_memory, read
from geomonitor.probe.attributes import shape_of
from geomonitor.probe.batches import MOST_WORKERS, ProbeBatch, dealt, loaded
from geomonitor.probe.content import CHECKED_POINTS, content_now, digest
from geomonitor.probe.kept import KeptBatches
from geomonitor.probe.label_key import LabelKey
from geomonitor.probe.reservoir import priority
from geomonitor.probe.views import Views

if TYPE_CHECKING:
    from geomonitor.probe.probe_set import ProbeSet


@dataclass(frozen=True, eq=False, repr=False)
class ChosenPoints:
    """What a :class:`ProbeSet` holds, however its points were chosen."""

    dataset: Any
    indices: Tensor  # int64 (Q,), into dataset, class by class
    labels: Tensor  # int64 (Q,), as in the dataset
    classes: tuple[int, ...]  # ascending
    per_class: int  # M
    seed: int
    fingerprint: str  # changes with the points, their labels, M and the seed; not with the platform
    label_key: LabelKey = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    content: str | None = None  # changes with what a few of the items hold; None: not known, or random
    labelled: bool = True  # without labels, all points are of class 0
    made_from: Mapping[str, Any] | None = None  # how classes were made of targets that are none, or that they were not
    views: ProbeSet | None = None  # of a set without labels: instance by instance, V points each
    how_viewed: Views | None = None  # of a set of views: how they are made
    _kept: KeptBatches = field(default_factory=KeptBatches, init=False)

    def check_content(self) -> None:
        """Read the few points of ``content`` again; nothing to do if that is None.

        Nor once the batches are kept (``docs/probe.md``): then no measurement reads the dataset again.

        Raises:
            MeasurementError: they hold something else now.
        """
        if self.views is not None:
            self.views.check_content()
        unknown = self.content is None or self._kept.holds_batches
        if not unknown and content_now(self._digests) != self.content:
            raise MeasurementError(
                f"the data of the probe set have changed since it was made: {type(self.dataset).__name__} gives other "
                "items under the same indices, and the numbers cannot be compared with those before. Let nothing write "
                "to this dataset, and give it no random transforms; or start again with a new probe set and monitor."
            )

    @property
    def attributes(self) -> tuple[int, int] | None:
        """Numbers of values ``(A, B)`` of two attributes, if the classes are their combinations."""
        return shape_of(self.classes, self.made_from)

    @property
    def logit_columns(self) -> tuple[int, ...]:
        """Labels that are columns of a classifier's logits: none without labels, or if classes were made of targets."""
        return self.classes if self.labelled and self.made_from is None else ()

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        kind = type(self.dataset.dataset if self.how_viewed else self.dataset).__name__
        points = f"{len(self.classes)} classes x {self.per_class} points of {kind}"
        if not self.labelled:
            points = f"{len(self)} points without labels of {kind}"
        if self.how_viewed is not None:
            points = f"{len(self.classes)} instances x {self.per_class} views of {kind}"
        return f"ProbeSet({points}, seed={self.seed}, fingerprint={self.fingerprint})"

    def loader(
        self,
        batch_size: int = 128,
        *,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        lockstep: bool = False,
    ) -> Iterator[ProbeBatch]:
        """Load the points, or one rank's part of them, in batches of nearly equal size.

        The parts of the ranks are disjoint and make up the whole; they differ by at most one point, and may
        be empty. Nothing is drawn from the global random streams, except by the dataset's own transforms.

        Args:
            batch_size: at most this many points at once.
            num_workers: processes that load; 0 loads in this one.
            rank: which part, 0 .. world_size - 1.
            world_size: how many parts.
            lockstep: every rank gets the same number of batches, for models whose ranks must run together
                (FSDP). A rank that has run out gets a batch with a borrowed input and without labels and ids;
                features beyond ``len(batch.ids)`` rows are then to be dropped.

        Yields:
            ``ProbeBatch``.

        Raises:
            InputError: ``batch_size`` or ``rank`` out of range.
        """
        num_workers = int(MOST_WORKERS.number("num_workers", num_workers))
        empty = _options.flag("lockstep", lockstep)
        parts = self._dealt(batch_size, rank, world_size)
        return self._batches([part for part in parts if empty or len(part)], num_workers)

    def batch_of(self, ids: Tensor) -> ProbeBatch:
        """Some points, by their ids, as one batch; without ids a borrowed input."""
        return next(self._batches([ids], 0))

    def _checked_indices(self) -> list[int]:
        order = torch.argsort(priority(torch.arange(len(self)), self.seed), stable=True)
        return [int(index) for index in self.indices[order[:CHECKED_POINTS]]]

    def _digests(self, times: int) -> list[str]:
        """Of the checked items as the dataset gives them, read ``times`` times in a row."""
        indices = self._checked_indices() * times
        return list(read(lambda dataset: (digest(dataset[index]) for index in indices), self.dataset))

    @property
    def items(self) -> int:
        """How many items go through the model."""
        return len(self)

    @property
    def item_numbers(self) -> Tensor:
        """int64 ``(Q,)``: number of the item to which each point belongs, from 0."""
        return torch.arange(len(self))

    def points_of(self, items: Tensor) -> Tensor:
        """Ids of the points of some items, by their numbers."""
        return torch.nonzero(torch.isin(self.item_numbers, items))[:, 0]

    def _dealt(self, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
        return dealt(len(self.classes), self.per_class, batch_size, rank, world_size)

    def _batches(self, parts: list[Tensor], num_workers: int) -> Iterator[ProbeBatch]:
        places = [self.indices[ids].tolist() or self.indices[:1].tolist() for ids in parts]
        for ids, batch in zip(parts, self._inputs(places, num_workers), strict=True):
            yield ProbeBatch(batch, self.labels[ids], ids)

    def _inputs(self, places: list[list[int]], num_workers: int) -> Iterator[Any]:
        """Batches of the items at some places of the dataset, read or kept."""
        source = partial(
            loaded, places=places, label_key=self.label_key, collate_fn=self.collate_fn, num_workers=num_workers,
            seed=self.seed,
        )  # fmt: skip
        if num_workers or (self.collate_fn in (None, default_collate) and is_in_memory(self.dataset)):
            return source(self.dataset)
        return self._kept.inputs(source, self.dataset, tuple(map(tuple, places)))
