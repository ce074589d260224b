"""Tokens as points: a probe set whose points are some of the tokens of some sequences."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.probe.batches import ProbeBatch, TokensOf, dealt
from geomonitor.probe.choice import MOST_CLASSES, checked_classes, choose
from geomonitor.probe.content import content_of
from geomonitor.probe.held_out import fingerprint_of, refuse_overlap
from geomonitor.probe.label_key import LabelKey
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.reservoir import priority
from geomonitor.probe.sequences import (
    ReadSequences,
    followed_tokens,
    inner_tokens,
    labelled_tokens,
    read_sequences,
    read_some,
    special_ids,
)
from geomonitor.probe.views import Views

MOST_TOKENS = 4096
"""Points without labels: enough for every marker of points, and pairs of them still fit into memory."""
_PLACES = 2**24
"""More than a sequence has tokens: item and place become one number."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenProbe(ProbeSet):
    """Points that are tokens (labelled, positions by their next token, or any), in layers that have tokens.

    The whole sequence goes through the model, and the rows of the chosen tokens are the points. Padding (by
    ``attention_mask``) and negative labels, such as -100, are left out. Standard errors over points are clustered by
    sequence, since the tokens of one sequence are not independent.
    """

    places: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """int64 ``(Q,)``: which token of its sequence a point is, from 0, padding not counted"""

    @classmethod
    def from_dataset(  # type: ignore[override]  # tokens have classes, never bins of targets
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
        samples: int = 1000,
    ) -> TokenProbe:
        """Choose labelled tokens: classification of tokens.

        Args:
            dataset: as in ``ProbeSet.from_dataset``, with labels ``(L,)`` for the tokens of each item.
            per_class: tokens of each class.
            classes: labels to take, or how many.
            seed: of the choice.
            train: as in ``ProbeSet.from_dataset``.
            allow_fewer: lower ``per_class`` for all classes if one has too few.
            label_key: field or position of the labels in an item.
            collate_fn: makes a batch of items; one that pads, if lengths differ.
            samples: the most sequences that are read, chosen by seed.

        Raises:
            InputError: as ``ProbeSet.from_dataset``; labels that are not one integer for each token.

        >>> ids, labels = torch.randint(9, (30, 8)), torch.arange(240).view(30, 8) % 4 - 1
        >>> probe = TokenProbe.from_dataset(torch.utils.data.TensorDataset(ids, labels), per_class=5)
        >>> probe.classes, len(probe)  # -1 is no class
        ((0, 1, 2), 15)
        """
        chosen = read_some(dataset, samples, seed, label_key, collate_fn)
        found = [labelled_tokens(sequence) for sequence in chosen.sequences]
        asked = None if classes is None else checked_classes(classes)
        options = {"per_class": per_class, "allow_fewer": allow_fewer, "train": train}
        return cls._of_classes(chosen, found, asked, "tokens", **options)

    @classmethod
    def from_next_tokens(
        cls,
        dataset: Any,
        *,
        per_class: int = 50,
        classes: int | Sequence[int] = MOST_CLASSES,
        seed: int = 0,
        train: Any = None,
        allow_fewer: bool = False,
        special_tokens: Sequence[int] = (),
        label_key: LabelKey = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        samples: int = 1000,
    ) -> TokenProbe:
        """Choose positions of a text by the token that follows: the classes of a language model.

        Args:
            dataset: map-style, with items of token ids ``(L,)``, alone or as ``input_ids``.
            per_class: positions of each class.
            classes: ids of the next tokens, or how many: the most frequent ones of what is read.
            seed: of the choice.
            train: as in ``ProbeSet.from_dataset``.
            allow_fewer: lower ``per_class`` for all classes if one has too few.
            special_tokens: ids that are neither points nor classes.
            label_key: field or position of what is dropped from an item.
            collate_fn: makes a batch of items; one that pads, if lengths differ.
            samples: the most sequences that are read, chosen by seed.

        Raises:
            InputError: as ``ProbeSet.from_dataset``; items without token ids.

        >>> texts = torch.utils.data.TensorDataset(torch.tensor([3, 5, 3, 5, 3, 8]).repeat(40, 3))
        >>> TokenProbe.from_next_tokens(texts, classes=2, per_class=10).classes
        (3, 5)
        """
        chosen = read_some(dataset, samples, seed, label_key, collate_fn)
        special = special_ids(special_tokens)
        found = [followed_tokens(sequence, special) for sequence in chosen.sequences]
        asked = checked_classes(classes)
        if isinstance(asked, int):
            counts = Counter(int(token) for _, following in found for token in following)
            ranked = sorted(counts, key=lambda token: (-counts[token], token))
            asked = tuple(sorted(ranked[: _options.whole("classes", asked, least=2)]))
        options = {"per_class": per_class, "allow_fewer": allow_fewer, "train": train}
        return cls._of_classes(chosen, found, asked, "next tokens", **options)

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
        special_tokens: Sequence[int] = (),
    ) -> TokenProbe:
        """Choose at most 4,096 tokens of some sequences, without labels; the first token of a text is left out.

        Args:
            dataset: as in ``ProbeSet.from_unlabelled``.
            samples: sequences.
            views: not for tokens.
            seed: of the choice.
            train: as in ``ProbeSet.from_dataset``.
            label_key: field or position of what is dropped from an item.
            collate_fn: makes a batch of items; one that pads, if lengths differ.
            special_tokens: ids that are no points.

        Raises:
            InputError: as ``ProbeSet.from_unlabelled``.

        >>> TokenProbe.from_unlabelled(torch.utils.data.TensorDataset(torch.arange(600).view(40, 15)), samples=9)
        TokenProbe(126 tokens of 9 sequences of TensorDataset, without labels, seed=0, fingerprint=...)
        """
        whole = ProbeSet.from_unlabelled(
            dataset, samples=samples, views=views, seed=seed, train=train, label_key=label_key, collate_fn=collate_fn
        )
        return cls.of(whole, special_tokens)

    @classmethod
    def of(cls, probe: ProbeSet, special_tokens: Sequence[int] = ()) -> TokenProbe:
        """The tokens of a probe set without labels; one of tokens as it is.

        Args:
            probe: made by ``from_unlabelled``.
            special_tokens: ids that are no points.

        Raises:
            InputError: a probe set with one label for each sequence, or with views.
        """
        if isinstance(probe, TokenProbe):
            return probe
        if probe.labelled or probe.views is not None:
            what = "has one label for each item" if probe.labelled else "has views, measured one row an item"
            raise InputError(
                f'pool="tokens" measures tokens, and this probe set {what}: give gm.TokenProbe.from_dataset (a label '
                "for each token), .from_next_tokens or .from_unlabelled"
            )
        special = special_ids(special_tokens)
        sequences = read_sequences(probe.dataset, probe.indices.numpy(), probe.label_key)
        kept = [inner_tokens(sequence, special) for sequence in sequences]
        points = torch.repeat_interleave(probe.indices, torch.tensor([len(places) for places in kept]))
        places = torch.cat(kept)
        if len(places) < 2:
            raise InputError("the sequences have fewer than two tokens that count (the first one and padding do not)")
        order = torch.argsort(priority(points * _PLACES + places, probe.seed), stable=True)[:MOST_TOKENS].sort().values
        given = {each.name: getattr(probe, each.name) for each in fields(ProbeSet) if each.init}
        mark = hashlib.sha256(f"{probe.fingerprint} tokens {special.tolist()}".encode()).hexdigest()[:16]
        given |= {
            "indices": points[order], "labels": torch.zeros(len(order), dtype=torch.int64), "per_class": len(order),
            "fingerprint": mark, "places": places[order],
        }  # fmt: skip
        made = cls(**given)
        return made if probe.content is None else made._with_content()

    @classmethod
    def _of_classes(
        cls,
        chosen: ReadSequences,
        found: list[tuple[Tensor, Tensor]],
        classes: int | tuple[int, ...] | None,
        kind: str,
        *,
        per_class: int,
        allow_fewer: bool,
        train: Any,
    ) -> TokenProbe:
        """Points of each class among the tokens that were found: numbers and classes by sequence."""
        per_class, allow_fewer = _options.whole("per_class", per_class), _options.flag("allow_fewer", allow_fewer)
        owner = np.repeat(chosen.indices, [len(places) for places, _ in found])
        places, labels = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
        rows = np.stack([chosen.rows[owner, 0], chosen.rows[owner, 1] * _PLACES + places], axis=1)
        choice = choose(labels, rows, classes, per_class, seed=chosen.seed, allow_fewer=allow_fewer)
        picked = choice.indices
        refuse_overlap(chosen.dataset, np.unique(owner[picked]), train)
        probe = cls(
            chosen.dataset, torch.from_numpy(owner[picked]), torch.from_numpy(labels[picked]), choice.classes,
            choice.per_class, chosen.seed,
            fingerprint_of(rows[picked], labels[picked], choice.per_class, chosen.seed, kind), chosen.label_key,
            chosen.collate_fn, places=torch.from_numpy(places[picked]),
        )  # fmt: skip
        return probe._with_content()

    def _with_content(self) -> TokenProbe:
        name = type(self.dataset).__name__
        return replace(self, content=content_of(self._digests, self._checked_indices(), name))

    @property
    def item_numbers(self) -> Tensor:
        """int64 ``(Q,)``: number of the sequence of each point, from 0."""
        numbers: Tensor = torch.unique(self.indices, return_inverse=True)[1]
        return numbers

    @property
    def items(self) -> int:
        """Sequences, which is what goes through the model."""
        return len(torch.unique(self.indices))

    def __repr__(self) -> str:
        points = f"{len(self.classes)} classes x {self.per_class} tokens" if self.labelled else f"{len(self)} tokens"
        where = f"{self.items} sequences of {type(self.dataset).__name__}"
        unlabelled = "" if self.labelled else ", without labels"
        return f"TokenProbe({points} of {where}{unlabelled}, seed={self.seed}, fingerprint={self.fingerprint})"

    def _dealt(self, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
        parts = dealt(1, self.items, batch_size, rank, world_size)
        points = [self.points_of(part) for part in parts]
        return [ids[torch.argsort(self.item_numbers[ids], stable=True)] for ids in points]

    def _batches(self, parts: list[Tensor], num_workers: int) -> Iterator[ProbeBatch]:
        found = [torch.unique(self.indices[ids], return_inverse=True) for ids in parts]
        every = torch.unique(self.indices)
        inputs = self._inputs([items.tolist() or every[:1].tolist() for items, _ in found], num_workers)
        for ids, (items, rows), batch in zip(parts, found, inputs, strict=True):
            tokens = TokensOf(torch.searchsorted(every, items), rows, self.places[ids])
            yield ProbeBatch(batch, self.labels[ids], ids, tokens)
