"""The probe set: a fixed, seeded, class-balanced choice of points on which every measurement is made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.probe.attributes import crossed
from geomonitor.probe.batches import collate_of
from geomonitor.probe.choice import SEED, checked_classes, choose, choose_unlabelled
from geomonitor.probe.chosen_points import ChosenPoints
from geomonitor.probe.content import content_of, content_of_views
from geomonitor.probe.datasets import map_style, targets_of
from geomonitor.probe.held_out import fingerprint_of, origins, refuse_overlap
from geomonitor.probe.label_key import LabelKey, checked_label_key
from geomonitor.probe.targets import Classes, classes_of
from geomonitor.probe.views import ViewedDataset, Views


@dataclass(frozen=True, eq=False, repr=False)
class ProbeSet(ChosenPoints):
    """Q = P M points of a dataset: M of each of P classes, always the same ones. Made by ``from_dataset``.

    Without labels, by ``from_unlabelled``: then all are of one class.
    """

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        per_class: int = 50,
        classes: int | Sequence[int] | Sequence[int | Sequence[int]] | None = None,
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
            classes: the labels to take, or how many (chosen by seed); None: all, or 20 if there are more. Of two
                attributes a pair: the values of the first, or how many, and those of the second.
            seed: 0 or a positive integer.
            train: the training dataset, its ``DataLoader``, or its indices into the dataset at the bottom of
                ``dataset``: no probe point may be in it. Recognised are parts of one dataset object; equal rows of
                ``tensors`` or ``data`` in memory; equal paths in ``samples``; equal items of two lists, or of two
                datasets of one class with the same transforms. What cannot be compared is refused.
            allow_fewer: if a class has fewer than ``per_class`` points, lower M for all classes.
            label_key: field or position of the label in an item, if it is not the usual one. Two of them, such as
                ``("shape", "colour")``, are attributes, in the item or within its label: each combination of their
                values is a class, and ``linear_factor_score`` and ``factor_orthogonality`` are measured.
            collate_fn: makes a batch of items; by default that of the ``DataLoader``, or torch's own.
            quantile_bins: of regression targets, the number of classes of nearly equal size to cut them into.
            label_sets: of several labels an item, take each set that ``per_class`` items or more have as a class.

        Returns:
            The probe set. Without one of the last two, regression targets and several labels an item are left out: as
            ``from_unlabelled`` with ``samples = 2 * per_class``.

        Raises:
            InputError: not a map-style dataset; labels missing or no numbers; fewer than two classes; an unknown
                class; too few points in a class, or a combination of attributes without any; points that are in
                ``train``, or a ``train`` that cannot be compared; targets that the options for these do not suit.

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
        label_key = checked_label_key(label_key, attributes=True)
        collate_fn = collate_of(dataset, collate_fn)
        asked: Any = classes
        if not isinstance(label_key, tuple) and classes is not None:
            asked = checked_classes(classes)
        dataset = map_style(dataset)
        rows = origins(dataset).rows
        targets = targets_of(dataset, label_key)
        name: Callable[[int], str] = str
        if isinstance(label_key, tuple):
            if quantile_bins is not None or label_sets:
                raise InputError("two attributes make the classes: leave out quantile_bins and label_sets")
            cells = crossed(targets, label_key, classes, seed)
            found = Classes(cells.labels, cells.made_from, np.arange(len(rows)))
            asked, name = cells.classes, cells.name
        else:
            found = classes_of(targets, rows, per_class, quantile_bins, label_sets)
        if found.labels is None:
            if asked is not None:
                raise InputError("classes= needs targets that are classes: give quantile_bins= or label_sets=True also")
            samples = min(2 * per_class, len(dataset)) if allow_fewer else 2 * per_class
            probe = cls.from_unlabelled(
                dataset, samples=samples, seed=seed, train=train, label_key=label_key, collate_fn=collate_fn
            )
            return replace(probe, made_from=found.made_from)
        labels, kept = found.labels, found.members
        choice = choose(labels[kept], rows[kept], asked, per_class, seed=seed, allow_fewer=allow_fewer, name=name)
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
        label_key, how = checked_label_key(label_key, attributes=True), Views.of(views)
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
