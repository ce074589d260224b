"""Batches of a probe set: which points each of them holds, and how they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.probe.handles import in_worker
from geomonitor.probe.label_key import LabelKey, split_label

Collate = Callable[[list[Any]], Any]
MOST_WORKERS = _options.Range(0, 1024, ends="[]", whole=True)
_RANKS = _options.Range(-(2**31), 2**31, ends="[)", whole=True)


class TokensOf(NamedTuple):
    """Which tokens of a batch are points."""

    sequences: Tensor  # int64 (B,), numbers of the sequences of the batch
    rows: Tensor  # int64 (n,), the sequence of each point, as a row of the batch
    places: Tensor  # int64 (n,), which of its tokens, padding not counted


class ProbeBatch(NamedTuple):
    """Some points of the probe set."""

    inputs: Any  # what goes to the model: the item without its label, collated
    labels: Tensor  # int64 (B,), as in the dataset
    ids: Tensor  # int64 (B,), positions in the probe set, 0 .. Q-1
    tokens: TokensOf | None = None  # if points are tokens


def collate_of(dataset: Any, collate_fn: Collate | None) -> Collate | None:
    """What makes a batch of items: the function that is given, or that of a ``DataLoader``; None: torch's own.

    Raises:
        InputError: ``collate_fn`` is no function of items.
    """
    if collate_fn is not None:
        _options.function("collate_fn", collate_fn, "items")
        return collate_fn
    return dataset.collate_fn if isinstance(dataset, DataLoader) and dataset.batch_size is not None else None


def dealt(classes: int, per_class: int, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
    """Ids by batch, dealt out class after class: a batch of ``B`` points has ``B / P`` of each class, to one point.

    Batch statistics (``track_running_stats=False``) of a batch of one class would describe that class alone.

    Args:
        classes: number of classes ``P``.
        per_class: points ``M`` of each.
        batch_size: at most this many points in a batch.
        rank: whose part.
        world_size: number of parts.

    Returns:
        Equally many batches for every rank, of which some may be empty.

    Raises:
        InputError: ``batch_size`` or ``rank`` out of range.

    >>> [part.tolist() for part in dealt(2, 3, batch_size=4, rank=0, world_size=1)]
    [[0, 3, 1], [4, 2, 5]]
    """
    batch_size = _options.whole("batch_size", batch_size, least=0)
    rank, world_size = int(_RANKS.number("rank", rank)), int(_RANKS.number("world_size", world_size))
    if batch_size < 1 or not 0 <= rank < world_size:
        found = f"{batch_size}, {rank} and {world_size}"
        raise InputError(f"expected batch_size >= 1 and 0 <= rank < world_size, found {found}")
    order = torch.arange(classes * per_class, device="cpu").reshape(classes, per_class).T.flatten()
    largest_part = -(-len(order) // world_size)
    rounds = -(-largest_part // batch_size)
    # Whole stretches for each rank: every n-th id would be of the same few classes.
    return list(order.tensor_split(world_size)[rank].tensor_split(rounds))


def loaded(
    dataset: Any,
    *,
    places: Sequence[list[int]],
    label_key: LabelKey,
    collate_fn: Collate | None,
    num_workers: int,
    seed: int,
) -> Iterator[Any]:
    """Inputs of the items at some places, batch by batch, without their labels.

    Args:
        dataset: map-style.
        places: of the items of each batch, one or more.
        label_key: place of the label in an item.
        collate_fn: makes a batch of items; None: torch's own.
        num_workers: processes that load; 0 loads in this one.
        seed: of the workers.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=places,
        collate_fn=collate_fn,
        num_workers=num_workers,
        worker_init_fn=in_worker,
        # Even without shuffling a DataLoader draws a number, by default from the global stream.
        generator=torch.Generator().manual_seed(seed),
    )
    for batch in loader:
        yield split_label(batch, label_key)[0]
