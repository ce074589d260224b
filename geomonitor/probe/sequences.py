"""The sequences of a data set: their tokens, which places are padding, and the labels of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.probe.apart import read
from geomonitor.probe.batches import collate_of
from geomonitor.probe.choice import SEED, choose_unlabelled
from geomonitor.probe.datasets import Indices, map_style
from geomonitor.probe.held_out import origins
from geomonitor.probe.label_key import LabelKey, checked_label_key, split_label


class TokenSequence(NamedTuple):
    ids: Tensor | None
    """``(L,)`` ids of the tokens, if the input is ids"""
    kept: Tensor
    """``(L,)`` whether a place holds a token, not padding"""
    labels: Tensor | None
    """``(L,)``"""


class ReadSequences(NamedTuple):
    """Sequences of a data set that have been read."""

    dataset: Any
    rows: Indices
    """``(n, 2)`` origin of each item of the data set"""
    indices: Indices
    """of the sequences"""
    sequences: list[TokenSequence]
    seed: int
    label_key: LabelKey
    collate_fn: Callable[[list[Any]], Any] | None


def read_some(dataset: Any, samples: int, seed: int, label_key: LabelKey, collate_fn: Any) -> ReadSequences:
    """Read at most ``samples`` sequences of a data set, chosen by seed.

    Raises:
        InputError: not a map-style dataset; items that are no sequences; options of the wrong type or range.
    """
    samples, seed = _options.whole("samples", samples, least=1), int(SEED.number("seed", seed))
    label_key, collate_fn = checked_label_key(label_key), collate_of(dataset, collate_fn)
    dataset = map_style(dataset)
    rows = origins(dataset).rows
    if not len(rows):
        raise InputError("a probe set of tokens needs sequences, and the dataset has none")
    indices = choose_unlabelled(rows, min(samples, len(np.unique(rows, axis=0))), seed=seed)
    return ReadSequences(
        dataset, rows, indices, read_sequences(dataset, indices, label_key), seed, label_key, collate_fn
    )


def read_sequences(dataset: Any, indices: Indices, label_key: LabelKey) -> list[TokenSequence]:
    """The items at some indices.

    Raises:
        InputError: items that are no sequences.
    """

    def parts(dataset: Any) -> Iterator[TokenSequence]:
        return (_sequence(dataset[int(index)], label_key) for index in indices)

    return [TokenSequence(*found) for found in read(parts, dataset)]


def _sequence(item: Any, label_key: LabelKey) -> TokenSequence:
    inputs, label = split_label(item, label_key)
    first = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    first = first[0] if isinstance(first, tuple) and first else first
    tokens, labels = _tensor(first), _tensor(label)
    mask = _tensor(inputs.get("attention_mask")) if isinstance(inputs, Mapping) else None
    ids = tokens if tokens is not None and tokens.ndim == 1 and not tokens.is_floating_point() else None
    length = next((len(each) for each in (tokens, labels) if each is not None and each.ndim), 0)
    kept = torch.ones(length, dtype=torch.bool) if mask is None else mask.reshape(-1) != 0
    if not length or len(kept) != length or (labels is not None and labels.ndim == 1 and len(labels) != length):
        raise InputError(
            "a probe set of tokens needs sequences: token ids or features (L, ...), alone or as input_ids, with an "
            f"attention_mask and labels of the same length, if there are any; found an item of type "
            f"{type(item).__name__} with {length} tokens, {len(kept)} places in the mask and labels "
            f"{None if labels is None else tuple(labels.shape)}"
        )
    return TokenSequence(ids, kept, labels)


def _tensor(value: Any) -> Tensor | None:
    try:
        return None if value is None else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # text, rows of different lengths
        return None


def labelled_tokens(sequence: TokenSequence) -> tuple[Tensor, Tensor]:
    """Numbers of the tokens that have a label, padding not counted, and the labels.

    Raises:
        InputError: not one integer label for each token.
    """
    labels = sequence.labels
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        found = "none" if labels is None else f"{labels.dtype} {tuple(labels.shape)}"
        raise InputError(
            f"expected one integer label for each token, with -100 for a token that has none; found {found}. Of one "
            "label an item give gm.ProbeSet.from_dataset; without labels, gm.TokenProbe.from_next_tokens or "
            ".from_unlabelled"
        )
    own = labels[sequence.kept].to(torch.int64)
    places = torch.nonzero(own >= 0)[:, 0]
    return places, own[places]


def special_ids(tokens: Sequence[int]) -> Tensor:
    """Ids of special tokens, checked.

    Raises:
        InputError: not a sequence of whole numbers.
    """
    if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Sequence):
        raise InputError(f"special_tokens is a list of ids of tokens, such as (0, 101); got {tokens!r}")
    return torch.tensor([_options.whole("special_tokens", token, least=0) for token in tokens], dtype=torch.int64)


def inner_tokens(sequence: TokenSequence, special: Tensor) -> Tensor:
    """Numbers of the tokens that are points: not the first one, on which attention is parked, nor a special one."""
    usual = torch.ones(int(sequence.kept.sum()), dtype=torch.bool)
    if sequence.ids is not None:
        usual &= ~torch.isin(sequence.ids[sequence.kept].to(torch.int64), special)
    usual[:1] = False
    return torch.nonzero(usual)[:, 0]


def followed_tokens(sequence: TokenSequence, special: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of tokens, and the token after each, which is no special one.

    Raises:
        InputError: the items are no token ids.
    """
    if sequence.ids is None:
        raise InputError("the next token is known of token ids (L,) only, alone or as input_ids")
    ids = sequence.ids[sequence.kept].to(torch.int64)
    places = inner_tokens(sequence, special)
    places = places[places < len(ids) - 1]
    following = ids[places + 1]
    usual = ~torch.isin(following, special)
    return places[usual], following[usual]
