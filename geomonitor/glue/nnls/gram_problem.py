"""The problem: non-negative least squares for many targets that share a few Gram matrices.

Every direction minimises, over ``x >= 0``,

    1/2 || sum_j x_j y_j u_j - t ||^2  +  ridge/2 ||x||^2

With ``K = U U^T`` and ``h = U t`` nothing of size ``N`` is left. The signs ``y`` can be taken out of the Hessian, so
that all directions of a group share one ``K``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Keeps the factor of nearly dependent columns finite; the refinement of the solution removes what it changes.
JITTER = 1e-13
# Gathered blocks of the Gram matrix are made in chunks of this size, so that they stay in a processor's cache.
BLOCK_BYTES = 1 << 25


class GramProblem(NamedTuple):
    """``B`` directions in ``G`` groups with ``C`` columns each; a padded column is zero and never violated."""

    gram: Tensor  # (G, C, C), unit diagonal, without the ridge
    products: Tensor  # (B, C), y_j <u_j, t> / |t|
    signs: Tensor  # (B, C), +1 or -1
    group: Tensor  # (B,), int64, ascending
    segment: int  # columns per segment, divides C
    units: Tensor | None = None  # (C, N), for one group: the way to K m if N is small
    largest_group: int | None = None  # directions in it; None: it has to be counted
    ridge: float = 0.0  # >= 0

    def select(self, rows: Tensor, largest_group: int | None = None) -> GramProblem:
        """The same problem for some of the directions; ``rows`` ascend."""
        return self._replace(
            products=self.products[rows],
            signs=self.signs[rows],
            group=self.group[rows],
            largest_group=largest_group,
        )


class ActiveSets(NamedTuple):
    """Solutions with only their positive entries; unused places hold column -1 and weight 0."""

    columns: Tensor  # (B, n), int64
    weights: Tensor  # (B, n), >= 0, for columns and target of length one
    converged: Tensor  # (B,), bool
    pivot: Tensor  # (B,), smallest squared distance of an active column to the span of those before; -1: not known

    def select(self, rows: Tensor) -> ActiveSets:
        """Some of the rows."""
        return ActiveSets(*(field[rows] for field in self))

    def with_rows(self, rows: Tensor, part: ActiveSets) -> ActiveSets:
        """A copy, wider if needed, in which some rows are replaced by those of other sets."""
        width = max(self.columns.shape[1], part.columns.shape[1])
        whole, part = self._widened(width), part._widened(width)
        return ActiveSets(*(old.index_copy(0, rows, new) for old, new in zip(whole, part, strict=True)))

    def dense(self, columns: int) -> Tensor:
        """The weights of all columns, ``(B, C)``."""
        return self.weights.new_zeros(len(self.weights), columns).scatter_add_(
            1, self.columns.clamp(min=0), self.weights
        )

    @classmethod
    def of_dense(cls, weights: Tensor, converged: Tensor) -> ActiveSets:
        """The positive ones of the weights of all columns, ``(B, C)``."""
        columns, counts = weights.sort(dim=1, descending=True, stable=True), (weights > 0).sum(dim=1)
        width = max(1, int(counts.amax()) if len(counts) else 1)
        used = torch.arange(width, device=weights.device) < counts[:, None]
        return cls(
            columns.indices[:, :width].masked_fill(~used, -1),
            columns.values[:, :width].masked_fill(~used, 0.0),
            converged,
            weights.new_full((len(weights),), -1.0),
        )

    def _widened(self, width: int) -> ActiveSets:
        extra, pad = (0, width - self.columns.shape[1]), torch.nn.functional.pad
        return self._replace(columns=pad(self.columns, extra, value=-1), weights=pad(self.weights, extra))


def signed_gradient(problem: GramProblem, columns: Tensor, weights: Tensor) -> Tensor:
    """Descent direction ``y <u, t - sum_j x_j y_j u_j> - ridge x`` of every column, ``(B, C)``."""
    used = columns.clamp(min=0)
    signed = weights * problem.signs.gather(1, used)
    dense = torch.zeros_like(problem.products).scatter_add_(1, used, signed)
    gradient = torch.addcmul(problem.products, problem.signs, _times_gram(problem, dense), value=-1)
    return gradient.scatter_add_(1, used, -problem.ridge * weights) if problem.ridge else gradient


def kkt_residual(gradient: Tensor, sets: ActiveSets) -> Tensor:
    """Largest violation ``(B,)``: descent directions of all columns, and ascent directions of the active ones."""
    active = torch.where(sets.columns >= 0, gradient.gather(1, sets.columns.clamp(min=0)).abs(), 0.0)
    return torch.maximum(gradient.amax(dim=1), active.amax(dim=1)).clamp(min=0)


def active_blocks(problem: GramProblem, columns: Tensor, rows: Tensor | None = None) -> Tensor:
    """Gram matrices of the active columns without signs, ``(B, n, n)``; unused places repeat column 0."""
    size = problem.gram.shape[-1]
    used = columns.clamp(min=0)
    first = used * size
    if len(problem.gram) > 1:
        group = problem.group if rows is None else problem.group[rows]
        first = first + (group * size**2)[:, None]
    return problem.gram.view(-1).take(first[:, :, None] + used[:, None, :])


class LeastSquares(NamedTuple):
    """Solutions on given columns, signs free."""

    solution: Tensor  # (B, n), zero where unused, NaN if the factor failed
    right: Tensor  # (B, n), right-hand side of the normal equations
    pivot: Tensor  # (B,), smallest squared distance of a column to the span of those before it


def solve_on(
    problem: GramProblem, columns: Tensor, *, rows: Tensor | None = None, refinements: int = 0
) -> LeastSquares:
    """Least squares on given columns, by Cholesky factors of their Gram matrices.

    Args:
        problem: the batch.
        columns: ``(B', n)``, -1 where unused.
        rows: ``(B',)``, the directions that the columns are of; None: all.
        refinements: steps of iterative refinement.
    """
    step = max(1, BLOCK_BYTES // (8 * columns.shape[1] ** 2))
    if len(columns) <= step:
        return _solve_block(problem, columns, rows, refinements)
    rows = torch.arange(len(columns), device=columns.device) if rows is None else rows
    parts = zip(torch.split(columns, step), torch.split(rows, step), strict=True)
    solved = [_solve_block(problem, *part, refinements) for part in parts]
    return LeastSquares(*(torch.cat(fields) for fields in zip(*solved, strict=True)))


def _solve_block(problem: GramProblem, columns: Tensor, rows: Tensor | None, refinements: int) -> LeastSquares:
    used = columns.clamp(min=0)
    present = columns >= 0
    if rows is None:
        signs, right = problem.signs.gather(1, used), problem.products.gather(1, used)
    else:
        places = rows[:, None] * problem.products.shape[1] + used
        signs, right = problem.signs.view(-1).take(places), problem.products.view(-1).take(places)
    signs, right = signs * present, right * present
    blocks = active_blocks(problem, columns, rows).mul_(signs[:, :, None]).mul_(signs[:, None, :])
    blocks.diagonal(dim1=1, dim2=2).add_(~present)
    if problem.ridge:
        blocks.diagonal(dim1=1, dim2=2).add_(problem.ridge)
    factored = blocks.clone() if refinements else blocks
    factored.diagonal(dim1=1, dim2=2).add_(JITTER)
    factor, failed = torch.linalg.cholesky_ex(factored)
    solution = _by_factor(factor, right[:, :, None])
    for _ in range(refinements):
        solution += _by_factor(factor, right[:, :, None] - blocks @ solution)
    solution = solution[:, :, 0].masked_fill((failed > 0)[:, None], float("nan"))
    pivot = factor.diagonal(dim1=1, dim2=2).square().amin(dim=1).masked_fill(failed > 0, 0.0)
    return LeastSquares(solution, right, pivot)


def _by_factor(factor: Tensor, right: Tensor) -> Tensor:
    """``(L L^T)^-1 right``; `torch.cholesky_solve` copies the factors first, which takes longer than to solve."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution


def _times_gram(problem: GramProblem, dense: Tensor) -> Tensor:
    """``K m`` per direction: a product for one group, a batched product over padded groups for several."""
    groups, size = len(problem.gram), dense.shape[1]
    if groups == 1:
        units = problem.units
        if units is not None and 2 * units.shape[1] < size:
            return (dense @ units) @ units.T
        return dense @ problem.gram[0]
    # How many directions each group has; `bincount` would wait for the device.
    counts = problem.group.new_zeros(groups).scatter_add_(0, problem.group, torch.ones_like(problem.group))
    most = problem.largest_group if problem.largest_group is not None else int(counts.max())
    if most * groups == len(dense):
        return (dense.view(groups, most, size) @ problem.gram).view(-1, size)
    within = torch.arange(len(dense), device=dense.device) - (counts.cumsum(0) - counts)[problem.group]
    places = problem.group * most + within
    padded = dense.new_zeros(groups * most, size).index_copy_(0, places, dense)
    return (padded.view(groups, most, size) @ problem.gram).view(-1, size)[places]
