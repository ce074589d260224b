"""Least squares in Gram space, for batches of samples that share a few Gram matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Keeps the factor of nearly dependent columns finite; the refinement of the solution removes what it changes.
JITTER = 1e-13
# Gathered blocks of the Gram matrix are made in chunks of this size, so that they stay in a processor's
# cache.
BLOCK_BYTES = 1 << 25


class GramProblem(NamedTuple):
    """``B`` samples in ``G`` groups with ``C`` columns each; a padded column is zero and never violated."""

    gram: Tensor  # (G, C, C), unit diagonal
    products: Tensor  # (B, C), y_j <u_j, t> / |t|
    signs: Tensor  # (B, C), +1 or -1
    group: Tensor  # (B,), int64, ascending
    segment: int  # columns per segment, divides C
    units: Tensor | None = None  # (C, N), for one group: the way to K m if N is small
    largest_group: int | None = None  # samples in it; None: it has to be counted

    def select(self, rows: Tensor, largest_group: int | None = None) -> GramProblem:
        """The same problem for some of the samples; ``rows`` ascend."""
        return self._replace(
            products=self.products[rows],
            signs=self.signs[rows],
            group=self.group[rows],
            largest_group=largest_group,
        )

    def samples_of_groups(self) -> Tensor:
        """How many samples each group has, ``(G,)``; unlike ``bincount`` without asking the device."""
        counts = self.group.new_zeros(len(self.gram))
        return counts.scatter_add_(0, self.group, torch.ones_like(self.group))


def signed_gradient(problem: GramProblem, columns: Tensor, weights: Tensor) -> Tensor:
    """Descent direction ``y <u, t - sum_j x_j y_j u_j>`` of every column, shape ``(B, C)``."""
    used = columns.clamp(min=0)
    signed = weights * problem.signs.gather(1, used)
    dense = torch.zeros_like(problem.products).scatter_add_(1, used, signed)
    return torch.addcmul(problem.products, problem.signs, times_gram(problem, dense), value=-1)


def active_blocks(problem: GramProblem, columns: Tensor, rows: Tensor | None = None) -> Tensor:
    """Gram matrices of the active columns without signs, shape ``(B, n, n)``; unused places repeat column
    0.
    """
    size = problem.gram.shape[-1]
    used = columns.clamp(min=0)
    first = used * size
    if len(problem.gram) > 1:
        group = problem.group if rows is None else problem.group[rows]
        first = first + (group * size**2)[:, None]
    return problem.gram.view(-1).take(first[:, :, None] + used[:, None, :])


class LeastSquares(NamedTuple):
    """Solutions on given columns, signs free."""

    solution: Tensor  # (B, n), zero where unused, NaN where the factor failed
    right: Tensor  # (B, n), right-hand side of the normal equations
    factor: Tensor  # (B, n, n), Cholesky factor of the Gram matrix of signed columns
    pivot: Tensor  # (B,), smallest squared distance of a column to the span of those before it


def solve_on(
    problem: GramProblem, columns: Tensor, *, rows: Tensor | None = None, refinements: int = 0
) -> LeastSquares:
    """Least squares on given columns.

    Args:
        problem: the batch.
        columns: ``(B', n)``, -1 where unused.
        rows: ``(B',)``, the samples that the columns are of; None: all.
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
    factored = blocks.clone() if refinements else blocks
    factored.diagonal(dim1=1, dim2=2).add_(JITTER)
    factor, failed = torch.linalg.cholesky_ex(factored)
    solution = by_factor(factor, right[:, :, None])
    for _ in range(refinements):
        solution += by_factor(factor, right[:, :, None] - blocks @ solution)
    solution = solution[:, :, 0].masked_fill((failed > 0)[:, None], float("nan"))
    pivot = factor.diagonal(dim1=1, dim2=2).square().amin(dim=1).masked_fill(failed > 0, 0.0)
    return LeastSquares(solution, right, factor, pivot)


def by_factor(factor: Tensor, right: Tensor) -> Tensor:
    """``(L L^T)^-1 right``; `torch.cholesky_solve` copies the factors first, which takes longer than to
    solve.
    """
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution


def times_gram(problem: GramProblem, dense: Tensor) -> Tensor:
    """``K m`` per sample: a product for one group, a batched product over padded groups for several."""
    groups, size = len(problem.gram), dense.shape[1]
    if groups == 1:
        units = problem.units
        if units is not None and 2 * units.shape[1] < size:
            return (dense @ units) @ units.T
        return dense @ problem.gram[0]
    counts = problem.samples_of_groups()
    most = problem.largest_group if problem.largest_group is not None else int(counts.max())
    if most * groups == len(dense):
        return (dense.view(groups, most, size) @ problem.gram).view(-1, size)
    within = torch.arange(len(dense), device=dense.device) - (counts.cumsum(0) - counts)[problem.group]
    places = problem.group * most + within
    padded = dense.new_zeros(groups * most, size).index_copy_(0, places, dense)
    return (padded.view(groups, most, size) @ problem.gram).view(-1, size)[places]
