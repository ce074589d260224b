"""Columns that a solution makes negative are dropped, batch by batch, until none is left."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.glue.nnls.gram_problem import GramProblem, LeastSquares, by_factor, solve_on

# Dropping a column through the inverse loses as many digits as the pivots are small; below this, factor
# again.
SAFE_PIVOT = 1e-6


def drop_until_positive(
    problem: GramProblem, columns: Tensor, weights: Tensor, careful: Tensor
) -> tuple[Tensor, Tensor]:
    """Solves on the columns, drops what is not positive, and so on; each pass asks the device once how it went.

    Ordinary samples drop every negative column at once. Careful ones step from the present weights towards
    the solution until the first weight is zero, and drop only that.

    Returns:
        solution and right-hand side, ``(B, n)``; the solution is zero where a column was dropped.
    """
    full = solve_on(problem, columns)
    solution = full.solution.clone()
    rows = torch.arange(len(columns), device=columns.device)
    unsafe = full.pivot < SAFE_PIVOT  # differences of large numbers: factor again
    part, dropped = solution, _Dropped.none(full)
    while True:
        negative = (columns >= 0) & ~(part > 0)
        ratio = torch.where(negative, weights / (weights - part), torch.inf)
        shortest = ratio.amin(dim=1, keepdim=True)
        gone = negative & ~(careful[:, None] & (ratio > shortest))
        open_ = negative.any(dim=1)
        told = torch.stack((open_.sum(), gone.sum(dim=1).amax(), (open_ & unsafe).sum()))
        left, most, again = told.tolist()  # the one synchronisation of a pass
        if not left:
            return solution, full.right
        kept = places_of(open_, left)
        rows, unsafe, careful, gone = rows[kept], unsafe[kept], careful[kept], gone[kept]
        weights, shortest = weights[kept], shortest[kept]
        weights = (weights + shortest * (part[kept] - weights)).clamp(min=0)
        columns = columns[kept].masked_fill(gone, -1)
        dropped = dropped.select(kept).with_more(gone, most)
        part = dropped.solution().masked_fill(columns < 0, 0.0)
        if again:
            anew = places_of(unsafe, again)
            solved = solve_on(problem, columns[anew], rows=rows[anew]).solution
            part[anew] = solved.masked_fill(columns[anew] < 0, 0.0)
        solution[rows] = part


def places_of(mask: Tensor, count: int) -> Tensor:
    """Where the mask ``(B,)`` holds, ascending; ``count`` is how often, so that nobody asks the device for it."""
    return mask.to(torch.int8).argsort(descending=True, stable=True)[:count]


class _Dropped(NamedTuple):
    """Solutions without some columns from the factor with them: ``x - V S^-1 x_D``, ``V = G^-1 E_D``, ``S =
    E_D^T V``.
    """

    full: Tensor  # (B, n), x
    factor: Tensor  # (B, n, n)
    places: Tensor  # (B, d), int64, dropped places D; -1 where unused
    inverse: Tensor  # (B, n, d), V

    @classmethod
    def none(cls, full: LeastSquares) -> _Dropped:
        nothing = full.solution[:, :0]
        return cls(full.solution, full.factor, nothing.long(), full.solution[:, :, None][:, :, :0])

    def select(self, rows: Tensor) -> _Dropped:
        return _Dropped(*(field[rows] for field in self))

    def with_more(self, gone: Tensor, count: int) -> _Dropped:
        """Drops columns ``(B, n)`` more, at most ``count`` of a sample."""
        places = torch.where(gone, torch.arange(gone.shape[1], device=gone.device), -1)
        places = places.sort(dim=1, descending=True).values[:, :count]
        columns = torch.zeros_like(self.factor[:, :, :1]).expand(-1, -1, count).clone()
        columns.scatter_(1, places.clamp(min=0)[:, None, :], (places >= 0).to(columns.dtype)[:, None, :])
        inverse = by_factor(self.factor, columns)
        return self._replace(
            places=torch.cat((self.places, places), dim=1), inverse=torch.cat((self.inverse, inverse), dim=2)
        )

    def solution(self) -> Tensor:
        used = self.places.clamp(min=0)
        unused = self.places < 0
        schur = self.inverse.gather(1, used[:, :, None].expand(-1, -1, used.shape[1]))
        schur = schur.masked_fill(unused[:, :, None] | unused[:, None, :], 0.0)
        schur.diagonal(dim1=1, dim2=2).add_(unused)
        right = self.full.gather(1, used).masked_fill(unused, 0.0)
        multipliers, _ = torch.linalg.solve_ex(schur, right)
        solution: Tensor = self.full - (self.inverse @ multipliers[:, :, None])[:, :, 0]
        return solution
