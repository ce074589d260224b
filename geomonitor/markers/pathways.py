r"""Pathways through a mixture of experts: which experts an item uses in a layer, and from one layer to the next."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.markers.estimate import Estimate
from geomonitor.markers.inputs import feature_matrix
from geomonitor.markers.routing import LeftOut, not_negative


def pathway_distance(weights: Tensor, per_token: int) -> Estimate:
    r"""How different the experts of two items are in one layer: :math:`1 - |S_i\cap S_j| / k`, mean over pairs.

    :math:`S_i` are the ``k`` experts of the largest mean weight over the tokens of item ``i``; of equal ones the first.

    Args:
        weights: ``(Q, E)``: mean over the tokens of an item of the weight of each expert.
        per_token: ``k``.

    Returns:
        Value in ``[0, 1]``, 0 if all items use the same experts; ``1 - k/E`` in expectation for sets at random. NaN
        with one item; its error needs three.

    Raises:
        InputError: as :func:`router_load_entropy`; ``k`` below 1 or above ``E``.

    Source: Li, Fan, Zhou 2025, arXiv:2506.21551, in which a distance of pathways falls while generalisation improves.
    They take an edit distance of sequences of experts over the layers, which has no closed expectation at random;
    this overlap is geomonitor's, and its direction unproven.

    >>> pathway_distance(torch.tensor([[0.5, 0.5, 0.0], [0.6, 0.0, 0.4]]), per_token=2).value.item()
    0.5
    """
    w, k = not_negative("weights", weights), _options.whole("per_token", per_token)
    if k > w.shape[1]:
        raise InputError(f"per_token is at most the number of experts, {w.shape[1]}; got {k}")
    return distance_of(w, k).estimate


def pathway_consistency(weights: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor]) -> Estimate:
    r"""Cosine of what two successive layers choose, :math:`u_{il} = \sum_e w_{ile} r_{le}`, mean over items.

    It depends on the scale of no router.

    Args:
        weights: of both layers, ``(Q, E)`` as in :func:`pathway_distance`.
        rows: weights of both routers, ``(E, H)``.

    Returns:
        Value in ``[-1, 1]``; about 0 for unrelated routers; NaN if a router is 0.

    Raises:
        InputError: as :func:`router_load_entropy`; sizes that do not fit.

    Source: as :func:`pathway_distance`: "cosine of weighted expert embeddings of successive layers", of which the
    weighting could not be read in the source. Unproven.

    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> pathway_consistency((torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])), (rows, 2 * rows)).value.item()
    0.0
    """
    w = [not_negative("weights", each) for each in weights]
    r = [feature_matrix(each) for each in rows]
    fits = [a.shape[1] == len(b) for a, b in zip(w, r, strict=True)]
    if not all(fits) or len(w[0]) != len(w[1]) or r[0].shape[1] != r[1].shape[1]:
        shapes = [tuple(each.shape) for each in (*w, *r)]
        raise InputError(f"weights (Q, E) and rows (E, H) of two layers must fit each other; got {shapes}")
    return consistency_of(w[0] @ r[0].to(w[0].device), w[1] @ r[1].to(w[1].device)).estimate


def distance_of(weights: Tensor, k: int) -> LeftOut:
    """From how many items have each expert in their set: no table of pairs is made."""
    items = len(weights)
    chosen = torch.zeros_like(weights)
    chosen.scatter_(1, weights.sort(dim=1, descending=True, stable=True).indices[:, :k], 1.0)
    counts = chosen.sum(dim=0)

    def distance(held: Tensor, items: int) -> Tensor:
        pairs = items * (items - 1) or math.nan
        return 1 - (held * (held - 1)).sum(dim=-1) / pairs / k

    return LeftOut(distance(counts, items), distance(counts - chosen, items - 1))


def consistency_of(one: Tensor, other: Tensor) -> LeftOut:
    """See :func:`pathway_consistency`; of ``u`` of both layers, ``(Q, H)``."""
    lengths = torch.linalg.vector_norm(one, dim=1) * torch.linalg.vector_norm(other, dim=1)
    cosines = (one * other).sum(dim=1) / lengths
    return LeftOut(cosines.mean(), (cosines.sum() - cosines) / (len(cosines) - 1 or math.nan))
