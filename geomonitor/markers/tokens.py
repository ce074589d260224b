r"""Markers of the tokens of a sequence, each sequence for itself."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.markers.estimate import Estimate
from geomonitor.markers.inputs import feature_matrix
from geomonitor.markers.unit_vectors import ROUNDING, unit_rows


def sequence_entropy(tokens: Tensor) -> Tensor:
    r"""Matrix entropy of the tokens of one sequence, in nats: :math:`-\sum p\ln p`, ``p`` eigenvalues of a Gram matrix.

    The mean of the tokens is removed, rows are brought to length one, and ``p`` are the eigenvalues of
    :math:`U U^\top / l`.

    Args:
        tokens: ``(l, N)``.

    Returns:
        0-dim float64 in ``[0, ln min(l - 1, N)]`` about; NaN if all tokens are equal.

    Raises:
        InputError: wrong rank, empty, NaN or infinite entries.

    Source: Skean et al. 2025, arXiv:2502.02013 ("prompt entropy").

    >>> round(sequence_entropy(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])).item(), 6)  # ln 2
    0.693147
    """
    x = feature_matrix(tokens)
    x = x / x.abs().amax().clamp(min=torch.finfo(x.dtype).tiny)
    size = torch.linalg.vector_norm(x, dim=1).amax()
    x = x - x.mean(dim=0)
    x = x[torch.linalg.vector_norm(x, dim=1) > ROUNDING * size]
    if len(x) < 2:
        return x.new_tensor(torch.nan)
    units = unit_rows(x)
    small = units if len(units) <= units.shape[1] else units.T
    shares = torch.linalg.eigvalsh(small @ small.T / len(units)).clamp(min=0)
    entropy: Tensor = torch.special.entr(shares / shares.sum()).sum()
    return entropy


def token_entropy(sequences: Iterable[Tensor], *, length: int) -> Estimate:
    r"""Mean of :func:`sequence_entropy` over sequences, as a share of its largest value, :math:`\ln\min(l, N)`.

    The entropy is biased down by a finite length, so all sequences are cut to one, and shorter ones are left out.

    Args:
        sequences: ``(l_i, N)`` each, without padding.
        length: tokens of each that count, at least two.

    Returns:
        Value in ``[0, 1]`` and its error over sequences; NaN if none is left.

    Raises:
        InputError: as :func:`sequence_entropy`; a length below two; features of one unit.

    Source: Skean et al. 2025, arXiv:2502.02013.

    >>> x = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    >>> round(token_entropy([x, 2 * x, x[:3]], length=4).value.item(), 6)
    1.0
    """
    length = _options.whole("length", length, least=2)
    found: list[Tensor] = []
    for tokens in sequences:
        if len(tokens) < length:
            continue
        width = feature_matrix(tokens).shape[1]
        if width < 2:
            raise InputError("the entropy of tokens needs features of at least 2 units; got 1")
        found.append(sequence_entropy(tokens[:length]) / math.log(min(length, width)))
    values = torch.stack([value.cpu() for value in found]) if found else torch.zeros(0, dtype=torch.float64)
    values = values[values.isfinite()]
    if not len(values):
        nan = torch.tensor(torch.nan, dtype=torch.float64)
        return Estimate(nan, nan)
    return Estimate(
        values.mean(), values.std() / len(values) ** 0.5 if len(values) > 1 else values.new_tensor(torch.nan)
    )
