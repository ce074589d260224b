"""The probe set: a fixed, seeded, class-balanced choice of points on which every measurement is made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from geomonitor import _options
from geomonitor.errors import InputError, MeasurementError
from geomonitor.probe.apart import is_in_memory, read
from geomonitor.probe.batches import MOST_WORKERS, ProbeBatch, collate_of, dealt, loaded
from geomonitor.probe.choice import SEED, checked_classes, choose, choose_unlabelled
from geomonitor.probe.content import CHECKED_POINTS, content_now, content_of, content_of_views, digest
from geomonitor.probe.datasets import LabelKey, checked_label_key, map_style, targets_of
from geomonitor.probe.held_out import fingerprint_of, origins, refuse_overlap
from geomonitor.probe.kept import KeptBatches
from geomonitor.probe.reservoir import priority
from geomonitor.probe.targets import classes_of
from geomonitor.probe.views import ViewedDataset, Views


@dataclass(frozen=True, eq=False, repr=False)
class ProbeSet:
    """Q = P M points of a dataset: M of each of P classes, always the same ones. Made by ``from_dataset``.

    Without labels, by ``from_unlabelled``: then all are of one class.
    """

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

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        per_class: int = 50,
        classes: int | Sequence[int] | None = None,
        seed: int = 0,
        train: Any = None,
        allow_fewer: bool = False,
        label_key: LabelKey = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        quantile_bins: int | None = None,
        label_sets: bool = False,
    ) -> ProbeSet:
        """Choose the points. What is chosen in a class depends on the seed and that class alone.

        A smaller ``per_class`` chooses among the points of a larger one; a point that a ``Subset`` repeats
        counts once; the order of a ``Subset`` does not matter. The labels come from ``targets``, ``labels``,
        ``tensors`` or a column if there is one, also behind a ``Subset``; otherwise every item is loaded once.

        Args:
            dataset: map-style, with items (x, y), longer tuples or mappings, or the ``DataLoader`` of one. It
                should be held out from training, of the same distribution, and without random transforms.
            per_class: points M of each class.
            classes: the labels to take, or how many (chosen by seed); None: all, or 20 if there are more.
            seed: 0 or a positive integer.
            train: the training dataset, its ``DataLoader``, or its indices into the dataset at the bottom of
                ``dataset``: no probe point may be in it. Recognised are parts of one dataset object; equal rows of
                ``tensors`` or ``data`` in memory; equal paths in ``samples``; equal items of two lists, or of two
                datasets of one class with the same transforms. What cannot be compared is refused.
            allow_fewer: if a class has fewer than ``per_class`` points, lower M for all classes.
            label_key: field or position of the label in an item, if it is not the usual one.
            collate_fn: makes a batch of items; by default that of the ``DataLoader``, or torch's own.
            quantile_bins: of regression targets, the number of classes of nearly equal size to cut them into.
            label_sets: of several labels an item, take each set that ``per_class`` items or more have as a class.

        Returns:
            The probe set. Without one of the last two, regression targets and several labels an item are left out: as
            ``from_unlabelled`` with ``samples = 2 * per_class``.

        Raises:
            InputError: not a map-style dataset; labels missing or no numbers; fewer than two classes; an
                unknown class; too few points in a class; points that are in ``train``, or a ``train`` that cannot
                be compared; targets that the last two options do not suit.

        Warns:
            GeomonitorWarning: when targets were left out, only 20 classes were taken, or M was lowered; when items are
                other ones each time they are read (random transforms), or hold what has no fingerprint: ``content`` is
                None then.

        Example:
            >>> dataset = torch.utils.data.TensorDataset(torch.randn(60, 8), torch.arange(60) % 3)
            >>> probe = ProbeSet.from_dataset(dataset, per_class=5)
            >>> probe.labels.tolist()
            [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
            >>> [tuple(batch.inputs.shape) for batch in probe.loader(batch_size=8)]
            [(8, 8), (7, 8)]
        """
        per_class = _options.whole("per_class", per_class)
        seed = int(SEED.number("seed", seed))
        allow_fewer = _options.flag("allow_fewer", allow_fewer)
        label_key, collate_fn = checked_label_key(label_key), collate_of(dataset, collate_fn)
        asked = None if classes is None else checked_classes(classes)
        dataset = map_style(dataset)
        rows = origins(dataset).rows
        found = classes_of(targets_of(dataset, label_key), rows, per_class, quantile_bins, label_sets)
        if found.labels is None:
            if asked is not None:
                raise InputError("classes= needs targets that are classes: give quantile_bins= or label_sets=True also")
            samples = min(2 * per_class, len(dataset)) if allow_fewer else 2 * per_class
            probe = cls.from_unlabelled(
                dataset, samples=samples, seed=seed, train=train, label_key=label_key, collate_fn=collate_fn
            )
            return replace(probe, made_from=found.made_from)
        labels, kept = found.labels, found.members
        choice = choose(labels[kept], rows[kept], asked, per_class, seed=seed, allow_fewer=allow_fewer)
        indices = kept[choice.indices]
        refuse_overlap(dataset, indices, train)
        mark = fingerprint_of(rows[indices], labels[indices], choice.per_class, seed, found.kind)
        probe = cls(
            dataset, torch.from_numpy(indices), torch.from_numpy(labels[indices]), choice.classes, choice.per_class,
            seed, mark, label_key, collate_fn, made_from=found.made_from,
        )  # fmt: skip
        return replace(probe, content=content_of(probe._digests, probe._checked_indices(), type(dataset).__name__))

    @classmethod
    def from_unlabelled(
        cls,
        dataset: Any,
        *,
        samples: int = 100,
        views: Views | Callable[[Any], Any] | str | None = None,
        seed: int = 0,
        train: Any = None,
        label_key: LabelKey = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> ProbeSet:
        """Choose points of a dataset whose labels are unknown, are no classes, or are not to be used.

        Markers that need labels are then left out of groups, and refused by name. With views, each item is one
        manifold, for one more forward pass of ``samples`` times ``views.count`` points: ``lidar``, ``instance_snr``,
        ``alignment`` and the geometry of instances.

        Args:
            dataset: map-style, or the ``DataLoader`` of one, with items as the model takes them. Of (x, y) and mappings
                with a label, the label is dropped.
            samples: how many points ``P``, two or more; all numbers depend on it.
            views: :class:`Views`, its kind, or a function of an item; None: no second pass.
            seed: 0 or a positive integer.
            train: as in :meth:`from_dataset`.
            label_key: field or position of what is dropped, if it is not the usual one.
            collate_fn: makes a batch of items.

        Raises:
            InputError: too few items; a kind that does not suit the items; views that are other ones each time they are
                made from the same seeds.

        Example:
            >>> dataset = torch.utils.data.TensorDataset(torch.randn(60, 8))
            >>> ProbeSet.from_unlabelled(dataset, samples=20, views="noise").views
            ProbeSet(20 instances x 10 views of TensorDataset, seed=0, fingerprint=...)
        """
        samples, seed = _options.whole("samples", samples, least=2), int(SEED.number("seed", seed))
        label_key, how = checked_label_key(label_key), Views.of(views)
        collate_fn = collate_of(dataset, collate_fn)
        dataset = map_style(dataset)
        rows = origins(dataset).rows
        indices = choose_unlabelled(rows, samples, seed=seed)
        refuse_overlap(dataset, indices, train)
        nothing = np.zeros(samples, np.int64)
        mark = fingerprint_of(rows[indices], nothing, samples, seed, "unlabelled")
        viewed = None
        if how is not None:
            made = ViewedDataset(dataset, indices.tolist(), rows[indices, 1].tolist(), how, label_key)
            viewed = cls._viewed(made, mark, collate_fn)
        probe = cls(
            dataset, torch.from_numpy(indices), torch.from_numpy(nothing), (0,), samples, seed,
            mark if viewed is None else viewed.fingerprint, label_key, collate_fn, labelled=False, views=viewed,
        )  # fmt: skip
        return replace(probe, content=content_of(probe._digests, probe._checked_indices(), type(dataset).__name__))

    @classmethod
    def _viewed(cls, made: ViewedDataset, mark: str, collate_fn: Callable[[list[Any]], Any] | None) -> ProbeSet:
        """The probe set of all views of the items of one whose fingerprint is ``mark``."""
        views, instances = made.views, len(made.indices)
        mark = hashlib.sha256(f"{mark} {sorted(views.as_protocol().items())}".encode()).hexdigest()[:16]
        probe = cls(
            made, torch.arange(len(made)), torch.arange(instances).repeat_interleave(views.count),
            tuple(range(instances)), views.count, views.seed, mark, made.label_key, collate_fn, labelled=False,
            how_viewed=views,
        )  # fmt: skip
        return replace(probe, content=content_of_views(probe._digests))

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
