r"""Singular values and eigenvalues of a set of points: which decomposition gives them, each once, on first use.

The Gram matrix of the centred points (``Q x Q`` or ``N x N``, whichever is smaller) and its eigenvalues cost a third of
the singular values. An eigenvalue is known to :math:`10^{-16} \lambda_1`, so a singular value from it to about
:math:`10^{-16} s_1^2 / s_i`: enough for formulas in :math:`\lambda / \sum\lambda`, and for a rank that counts down to
:math:`10^{-3} s_1`, but not for RankMe, which adds up all :math:`s_i`, nor for a power law of small eigenvalues.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geomonitor.errors import GeomonitorWarning
from geomonitor.markers.inputs import feature_matrix

if TYPE_CHECKING:
    from typing_extensions import Self

ROUNDING = 8 * torch.finfo(torch.float64).eps
"""Centred features below this share of their mean are the rounding of the subtraction; singular values below this share
of the largest are the rounding of the decomposition. Both stand for exact zeros."""


class Spectrum:
    """The spectra of ``Q`` points in ``N`` units.

    What is centred is in units of ``scale``, so that no square overflows.

    Args:
        centered: ``(R, N)`` float64, rows with the scatter of the points around their mean: the points less their mean,
            or a factor of that scatter.
        mean: ``(N,)`` mean of the points.
        points: ``Q``.

    >>> Spectrum.of(torch.tensor([[3.0, 1.0], [1.0, 1.0]])).raw
    tensor([3.4142, 0.5858], dtype=torch.float64)
    """

    def __init__(self, centered: Tensor, mean: Tensor, points: int) -> None:
        largest = centered.abs().amax() if len(centered) else centered.new_zeros(())
        self.points, self.units = points, centered.shape[1]
        self.scale = torch.where(largest > 0, largest, 1.0)
        """the largest magnitude in ``centered``; 0-dim"""
        self._row = points**0.5 * mean  # one more row with which the centred points have the spectrum of the raw ones
        matrix = centered / self.scale
        # A difference that is only the rounding of the mean counts as none.
        self._rounding = ROUNDING * torch.linalg.vector_norm(self._row / self.scale)
        self.matrix = torch.where(torch.linalg.vector_norm(matrix) > self._rounding, matrix, 0.0)
        """``(R, N)`` the centred points, exactly zero if all points are equal"""

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """The spectrum of a feature matrix ``(Q, N)``; raises ``InputError`` as :func:`.inputs.feature_matrix`."""
        x = feature_matrix(features)
        mean = x.mean(dim=0)
        centered = x - mean
        rest = centered.mean(dim=0)  # the rounding of the first mean
        return cls(centered - rest, mean + rest, len(x))

    @cached_property
    def gram(self) -> Tensor:
        """``(min(R, N), min(R, N))``: products of the centred points with each other, or of the units."""
        return self.matrix @ self.matrix.T if len(self.matrix) <= self.units else self.matrix.T @ self.matrix

    @cached_property
    def eigenvalues(self) -> Tensor:
        """``(min(Q, N),)`` eigenvalues of ``gram``, descending, ``>= 0``, accurate to 1e-16 of the largest."""
        values = _by_solver(torch.linalg.eigvalsh, self.gram).flip(0)[: self._kept].clamp(min=0)
        return self._without_rounding(values.sqrt()).square()

    @cached_property
    def centered(self) -> Tensor:
        """``(min(Q, N),)`` singular values of the centred points, descending, accurate to 1e-16 of the largest."""
        return self._without_rounding(_singular_values(self.matrix)[: self._kept])

    @cached_property
    def raw(self) -> Tensor:
        """``(min(Q, N),)`` singular values of the points as they are, descending, in units of the features."""
        return _singular_values(torch.cat([self.matrix * self.scale, self._row[None]]))[: self._kept]

    @property
    def _kept(self) -> int:
        return min(self.points, self.units)

    def _without_rounding(self, values: Tensor) -> Tensor:
        """Zeros for values that are rounding; the largest stays, since ``matrix`` is zero if that one is rounding."""
        kept = values > torch.maximum(self._rounding, ROUNDING * values[0])
        kept[0] = True
        return torch.where(kept, values, 0.0)


def _singular_values(matrix: Tensor) -> Tensor:
    # LAPACK takes three times as long for a wide matrix as for its transpose.
    return _by_solver(torch.linalg.svdvals, matrix if len(matrix) >= matrix.shape[1] else matrix.T)


def _by_solver(solver: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    try:
        return solver(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # seen with the GPU's solver; LAPACK's converges
        message = "the singular value decomposition did not converge on the GPU; computed on the CPU"
        warnings.warn(message, GeomonitorWarning, stacklevel=2)
        return solver(matrix.cpu()).to(matrix.device)
