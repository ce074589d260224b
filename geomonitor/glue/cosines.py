"""Cosines of rows from their products, and how sums of them change."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.glue.pseudo_inverse import ZERO_ROW


def norms_of_rows(gram: Tensor, scale: Tensor) -> Tensor:
    """Norms of rows; zero if they are rounding error."""
    squares = gram.diagonal(dim1=1, dim2=2)
    return torch.where(squares > ZERO_ROW * scale[:, None], squares, 0.0).sqrt()


class Cosines(NamedTuple):
    """Cosines of ordered pairs ``mu != nu``."""

    values: Tensor  # (B, P, P), 0 if a norm is zero
    defined: Tensor  # (B, P, P), float64, 1 if no norm is zero

    def both(self) -> tuple[Tensor, Tensor]:
        """Signed and absolute cosines ``(2, B, P, P)``, and signs whose products with the norms' inverses they are."""
        return (
            torch.stack((self.values, self.values.abs())),
            torch.stack((self.defined, self.values.sign())),
        )

    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Signed and absolute sum and number of pairs, ``(B,)`` each."""
        return self.values.sum(dim=(1, 2)), self.values.abs().sum(dim=(1, 2)), self.defined.sum(dim=(1, 2))


def cosines(products: Tensor, left: Tensor, right: Tensor) -> Cosines:
    """Cosines of rows with these products ``(B, P, P)`` and norms ``(B, P)``."""
    lengths = left[:, :, None] * right[:, None, :]
    defined = lengths > 0
    defined.diagonal(dim1=1, dim2=2).fill_(False)
    return Cosines(torch.where(defined, products / lengths, 0.0), defined.to(products.dtype))


def inverse_of(norms: Tensor) -> Tensor:
    """``1 / norm``, and 0 for rows of norm zero."""
    return torch.where(norms > 0, 1 / norms, 0.0)


def cosine_slopes(cosines: Tensor, left: Tensor, right: Tensor, signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a sum of cosines ``<l_mu, r_nu> / (|l_mu| |r_nu|)``: derivatives by the products and by ``|l|^2``, ``|r|^2``.

    Args:
        cosines: ``(..., B, P, P)``, 0 if a cosine is undefined; their absolute values for the sum of these.
        left: ``(B, P)``, inverse norms; 0: no such row.
        right: ``(B, P)``.
        signs: ``(..., B, P, P)``, +1 or -1 (for the sum of absolute cosines) if the cosine is defined, else 0.
    """
    return (
        signs * left[:, :, None] * right[:, None, :],
        -0.5 * cosines.sum(dim=-1) * left.square(),
        -0.5 * cosines.sum(dim=-2) * right.square(),
    )
