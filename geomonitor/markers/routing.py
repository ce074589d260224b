r"""Markers of the routers of a mixture of experts.

One layer routes each token to ``k`` of ``E`` experts. An item is a sequence, or an image: what tokens belong to. Errors
are jackknives over items, since tokens of an item are not independent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.markers.estimate import Estimate, jackknife
from geomonitor.markers.inputs import feature_matrix

FEWEST_TOKENS = 20
"""Assignments that each expert would get at least if they were even, for ``dead_experts``: then a living one of an even
share is missed with a probability of about exp(-20)."""


class LeftOut(NamedTuple):
    """A marker, and its values without each item in turn."""

    value: Tensor
    left_out: Tensor
    """``(Q,)``; NaN: it has no such error"""

    @property
    def estimate(self) -> Estimate:
        """With the error of the jackknife."""
        return Estimate(self.value, jackknife(self.left_out))


def router_load_entropy(assignments: Tensor) -> Estimate:
    r"""How evenly the experts are used: :math:`-\sum_e f_e\ln f_e / \ln E`, ``f`` the shares of the assignments.

    Biased by about :math:`-(E-1)/(2 T k\ln E)` with ``T`` independent tokens, more with dependent ones: compare numbers
    of the same probe set.

    Args:
        assignments: ``(Q, E)``: tokens of each item that each expert got.

    Returns:
        Value in ``[0, 1]``, 1 for even use, 0 for a single expert; NaN of one expert, or without assignments.

    Raises:
        InputError: not two-dimensional, empty, NaN, infinite or negative entries.

    Source: geomonitor; the bias: Miller 1955.

    >>> router_load_entropy(torch.tensor([[3.0, 1.0], [1.0, 3.0]])).value.item()
    1.0
    """
    return load_entropy_of(not_negative("assignments", assignments)).estimate


def dead_experts(assignments: Tensor) -> Tensor:
    """Share of the experts that no token of the probe set is sent to.

    Args:
        assignments: ``(Q, E)``: tokens of each item that each expert got.

    Returns:
        0-dim float64 in ``[0, 1)``; NaN with fewer than ``20 E / k`` tokens (``20 E`` assignments), among which an
        expert may be missing by chance.

    Raises:
        InputError: as :func:`router_load_entropy`.

    Source: geomonitor.

    >>> dead_experts(torch.tensor([[30.0, 0.0, 0.0, 50.0]])).item()
    0.5
    """
    return dead_experts_of(not_negative("assignments", assignments)).value


def token_entropies(probabilities: Tensor) -> Tensor:
    r"""Entropy of the router's probabilities for each token, :math:`-\sum_e p_e\ln p_e / \ln E`.

    Args:
        probabilities: ``(T, E)``, rows of sum 1.

    Returns:
        ``(T,)`` float64 in ``[0, 1]``; NaN of one expert.

    Raises:
        InputError: as :func:`router_load_entropy`.

    >>> token_entropies(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    p = not_negative("probabilities", probabilities)
    entropies: Tensor = torch.special.entr(p).sum(dim=1) / (math.log(p.shape[1]) or math.nan)
    return entropies


def router_entropy(entropies: Tensor, tokens: Tensor) -> Estimate:
    """Mean entropy of the router's probabilities over all tokens.

    Args:
        entropies: ``(Q,)`` sum of :func:`token_entropies` over the tokens of each item.
        tokens: ``(Q,)`` how many it has.

    Returns:
        Value in ``[0, 1]``, 1 if the router prefers no expert; NaN if an entropy is.

    Raises:
        InputError: not two vectors of one length, or empty.

    Source: geomonitor.

    >>> router_entropy(torch.tensor([2.0, 0.0]), torch.tensor([2.0, 2.0])).value.item()
    0.5
    """
    if entropies.shape != tokens.shape or entropies.ndim != 1 or not len(tokens):
        raise InputError(
            f"entropies and tokens must have shape (Q,); got {tuple(entropies.shape)}, {tuple(tokens.shape)}"
        )
    return ratio_of(entropies.double(), tokens.double()).estimate


def not_negative(name: str, values: Tensor) -> Tensor:
    """A matrix in float64 without negative entries.

    Raises:
        InputError: something else.
    """
    matrix = feature_matrix(values)
    if bool((matrix < 0).any()):
        raise InputError(f"{name} must not be negative")
    return matrix


def load_entropy_of(assignments: Tensor) -> LeftOut:
    """See :func:`router_load_entropy`."""
    counts = assignments.sum(dim=0)
    return LeftOut(_evenness(counts), _evenness((counts - assignments).clamp(min=0)))


def _evenness(counts: Tensor) -> Tensor:
    shares = counts / counts.sum(dim=-1, keepdim=True)
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1) / (math.log(counts.shape[-1]) or math.nan)
    return entropy


def dead_experts_of(assignments: Tensor) -> LeftOut:
    """See :func:`dead_experts`."""
    counts = assignments.sum(dim=0)
    share = (counts == 0).double().mean()
    few = counts.sum() < FEWEST_TOKENS * len(counts)
    return LeftOut(torch.where(few, math.nan, share), torch.full_like(assignments[:, 0], math.nan))


def ratio_of(sums: Tensor, tokens: Tensor) -> LeftOut:
    """A mean over tokens, from sums over those of items."""
    return LeftOut(sums.sum() / tokens.sum(), (sums.sum() - sums) / (tokens.sum() - tokens))
