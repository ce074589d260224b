"""What a measurement takes of tokens in its pass: outputs at the points, and the entropy of some sequences."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from geomonitor.errors import MeasurementError
from geomonitor.features.outputs import outputs_of
from geomonitor.features.pooling import RowsOfTokens, TokensAt
from geomonitor.markers.tokens import sequence_entropy
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.reservoir import priority

TOKEN_ENTROPY = "token_entropy"
MOST_SEQUENCES = 64
"""Sequences whose entropy is taken: each is an eigenvalue problem of the size of its length."""
REACHED_BY = 0.75
"""Share of these that are at least as long as the length to which all are cut; shorter ones are left out."""
NOT_TAKEN = -1.0
"""In the place of an entropy. NaN would not equal itself if a layer runs twice."""


def sequences_of(probe: ProbeSet) -> Tensor:
    """Numbers of the sequences whose entropy is taken, the same at every measurement and in every process."""
    order = torch.argsort(priority(torch.arange(probe.items), probe.seed), stable=True)
    return order[:MOST_SEQUENCES].sort().values


def common_length(lengths: Tensor) -> int:
    """To how many tokens sequences are cut, two at least: three quarters of them are as long.

    >>> common_length(torch.tensor([9, 3, 7, 8]))
    7
    """
    longest_first = lengths.sort(descending=True).values
    return max(2, int(longest_first[math.ceil(REACHED_BY * len(lengths)) - 1]))


class TokenLength:
    """To how many tokens the sequences of a series are cut; the probe set is read for it once."""

    def __init__(self) -> None:
        self._known: tuple[str, int | None] | None = None

    def find(self, probe: ProbeSet, mask_of: Any) -> int | None:
        """The length; None: there is no mask, so all sequences of a batch have that of its tokens.

        Args:
            probe: which sequences.
            mask_of: gives the mask ``(B, L)`` of inputs, or None.
        """
        if self._known is None or self._known[0] != probe.fingerprint:
            mask = mask_of(probe.batch_of(probe.points_of(sequences_of(probe))).inputs)
            self._known = probe.fingerprint, None if mask is None else common_length(mask.bool().sum(dim=1).cpu())
        return self._known[1]


class SequenceEntropies(RowsOfTokens):
    """Entropy of the tokens of some sequences of a batch, ``(B, 1)``; ``NOT_TAKEN`` of others and where undefined.

    Args:
        chosen: ``(B,)`` whether to take that of a sequence.
        length: to which they are cut; None: to that of the batch.
    """

    optional = True

    def __init__(self, chosen: Tensor, length: int | None) -> None:
        self.chosen, self.length = chosen, length

    def rows(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`RowsOfTokens.rows`."""
        found = torch.full((len(tokens), 1), NOT_TAKEN, dtype=torch.float64)
        length = self.length or tokens.shape[1]
        for row in torch.nonzero(self.chosen)[:, 0].tolist():
            own = tokens[row] if mask is None else tokens[row][mask[row]]
            largest = math.log(min(length, own.shape[1])) if min(length, own.shape[1]) > 1 else 0.0
            if len(own) >= length and largest and bool(own[:length].isfinite().all()):
                found[row] = float(sequence_entropy(own[:length])) / largest
        return found.nan_to_num(nan=NOT_TAKEN)


def mean_entropy(values: Tensor) -> tuple[float, float]:
    """Mean over the sequences in which the entropy is defined, and its standard error.

    >>> mean_entropy(torch.tensor([0.25, NOT_TAKEN, 0.75]).double())
    (0.5, 0.25)
    """
    taken = values[values != NOT_TAKEN]
    error = float(taken.std()) / len(taken) ** 0.5 if len(taken) > 1 else math.nan
    return (float(taken.mean()) if len(taken) else math.nan), error


def outputs_at(output: Any, which: TokensAt, mask: Tensor | None) -> Any:
    """What a model gives for some tokens: its outputs ``(B, L, C)`` as ``(n, C)``; without all others.

    Args:
        output: what the model returned.
        which: tokens.
        mask: ``(B, L)``.

    >>> which = TokensAt(torch.tensor([0, 0]), torch.tensor([0, 2]))
    >>> outputs_at({"logits": torch.zeros(1, 3, 5)}, which, None).logits.shape
    torch.Size([2, 5])
    """
    picked = {}
    for name, tensor in outputs_of(output).items():
        if tensor.ndim == 3 and (mask is None or tensor.shape[:2] == mask.shape):
            try:
                picked[name] = which.rows(tensor, mask)
            except MeasurementError:  # of another length: no output of tokens
                continue
    return picked.get("") if isinstance(output, Tensor) else SimpleNamespace(**picked)


def mask_of_tokens(inputs: Any) -> Tensor | None:
    """The ``attention_mask`` of a batch, by which the tokens of a probe are counted; None if there is none."""
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    return mask if isinstance(mask, Tensor) else None
