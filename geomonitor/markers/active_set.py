"""Batched exact non-negative least squares in Gram space: many samples that share a few Gram matrices.

Every sample minimises ``1/2 || sum_j x_j y_j u_j - t ||^2`` over ``x >= 0``. With ``K = U U^T`` and ``h = U
t`` nothing of size ``N`` is left, and as the signs ``y`` can be taken out of the Hessian, all samples of a
group share one ``K``.

Each round adds, for every sample, the worst violated column of each segment (class), solves for the enlarged
set, and drops negative columns until none is left. If that did not lower the objective, the sample goes back
to its last good set and takes one careful round: one column, with the ratio steps of Lawson and Hanson, which
always descend.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A column of length one violates its constraint if the residual (of a target of length one) leans to it by
# this ...
VIOLATION = 1e-12
# ... or by what rounding can do: sums of products of unit columns err by about this much per unit of dual
# mass.
ROUNDING_PER_MASS = 1e-14
# Keeps the factor of nearly dependent columns finite; the refinement of the solution removes what it changes.
JITTER = 1e-13
# Dropping a column through the inverse loses as many digits as the pivots are small; below this, factor
# again.
SAFE_PIVOT = 1e-6
# The objective must fall by this part of itself: less is rounding.
LEAST_PROGRESS = 1e-14
# A batch is made smaller when this part of its samples is done; before, moving the rest costs more than it
# saves.
DONE_SHARE = 0.1
# After so many rounds the rest goes to a method that needs no luck. Ordinary batches need 5 to 30.
ROUNDS = 100
# With more points than dimensions a sample with this share of as many active columns as dimensions grows
# slowly and ends in a factor of full size: another method then takes a tenth of the time. Small samples never
# cost much.
SATURATED_SHARE, SATURATED_LEAST = 0.75, 96
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

    def select(self, rows: Tensor) -> GramProblem:
        """The same problem for some of the samples."""
        return self._replace(products=self.products[rows], signs=self.signs[rows], group=self.group[rows])


class ActiveSets(NamedTuple):
    """Solutions with only their positive entries; unused places hold column -1 and weight 0."""

    columns: Tensor  # (B, n), int64
    weights: Tensor  # (B, n), >= 0, for columns and target of length one
    converged: Tensor  # (B,), bool


class _State(NamedTuple):
    sample: Tensor  # (B,), int64, row in the whole batch
    columns: Tensor  # (B, n), int64, -1 where unused
    weights: Tensor  # (B, n)
    objective: Tensor  # (B,)
    careful: Tensor  # (B,), bool: the last round did not descend
    stuck: Tensor  # (B,), bool: not even a careful round descended

    def select(self, rows: Tensor) -> _State:
        return _State(*(field[rows] for field in self))


def solve(problem: GramProblem, *, rounds: int = ROUNDS) -> ActiveSets:
    """Solves every sample of a batch.

    Args:
        problem: the batch.
        rounds: cap; samples that are still open after it come back as not converged.

    >>> problem = GramProblem(torch.eye(2).double()[None], torch.tensor([[0.6, -0.8]]).double(),
    ...                       torch.ones(1, 2).double(), torch.tensor([0]), 1)
    >>> solve(problem).weights
    tensor([[0.6000]], dtype=torch.float64)
    """
    state = _empty_state(problem)
    batch = len(state.sample)
    most = most_active(problem)
    done: list[_State] = []
    for _ in range(rounds):
        gradient = signed_gradient(problem, state.columns, state.weights)
        candidates, values = _worst_per_segment(problem, state, gradient)
        active = (state.columns >= 0).sum(dim=1)
        state = state._replace(stuck=state.stuck | (active > most))
        going = (candidates >= 0).any(dim=1) & ~state.stuck
        width = active.amax() if batch else going.sum()
        remaining, used = torch.stack((going.sum(), width)).tolist()  # the one synchronisation of a round
        if remaining <= (1 - DONE_SHARE) * len(going):
            done.append(state.select(~going))
            problem, state = problem.select(going), state.select(going)
            candidates, values = candidates[going], values[going]
        if remaining == 0:
            break
        state = _enlarge(problem, state, candidates, values, used)
    return _collect(done, state, batch)


def signed_gradient(problem: GramProblem, columns: Tensor, weights: Tensor) -> Tensor:
    """Descent direction ``y <u, t - sum_j x_j y_j u_j>`` of every column, shape ``(B, C)``."""
    used = columns.clamp(min=0)
    signed = weights * problem.signs.gather(1, used)
    dense = torch.zeros_like(problem.products).scatter_add_(1, used, signed)
    return torch.addcmul(problem.products, problem.signs, _times_gram(problem, dense), value=-1)


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
    solution = _by_factor(factor, right[:, :, None])
    for _ in range(refinements):
        solution += _by_factor(factor, right[:, :, None] - blocks @ solution)
    solution = solution[:, :, 0].masked_fill((failed > 0)[:, None], float("nan"))
    pivot = factor.diagonal(dim1=1, dim2=2).square().amin(dim=1).masked_fill(failed > 0, 0.0)
    return LeastSquares(solution, right, factor, pivot)


def _by_factor(factor: Tensor, right: Tensor) -> Tensor:
    """``(L L^T)^-1 right``; `torch.cholesky_solve` copies the factors first, which takes longer than to
    solve.
    """
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution


def _times_gram(problem: GramProblem, dense: Tensor) -> Tensor:
    """``K m`` per sample: a product for one group, a batched product over padded groups for several."""
    groups, size = len(problem.gram), dense.shape[1]
    if groups == 1:
        units = problem.units
        if units is not None and 2 * units.shape[1] < size:
            return (dense @ units) @ units.T
        return dense @ problem.gram[0]
    counts = problem.group.bincount(minlength=groups)
    most = int(counts.max())
    if most * groups == len(dense):
        return (dense.view(groups, most, size) @ problem.gram).view(-1, size)
    within = torch.arange(len(dense), device=dense.device) - (counts.cumsum(0) - counts)[problem.group]
    places = problem.group * most + within
    padded = dense.new_zeros(groups * most, size).index_copy_(0, places, dense)
    return (padded.view(groups, most, size) @ problem.gram).view(-1, size)[places]


def _worst_per_segment(problem: GramProblem, state: _State, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Most violated column of each segment, ``(B, C / segment)``: number (-1: none is violated) and
    violation.
    """
    _hide_active(gradient, state.columns)
    values, places = gradient.view(len(gradient), -1, problem.segment).max(dim=2)
    offsets = torch.arange(0, gradient.shape[1], problem.segment, device=gradient.device)
    tolerance = (ROUNDING_PER_MASS * state.weights.sum(dim=1)).clamp(min=VIOLATION)
    violated = values > tolerance[:, None]
    return torch.where(violated, places + offsets, -1), torch.where(violated, values, 0.0)


def _hide_active(gradient: Tensor, columns: Tensor) -> None:
    """Sets the gradient of active columns to minus infinity: it is zero up to rounding and JITTER."""
    first = columns[:, :1]
    used = torch.where(columns >= 0, columns, first).clamp(min=0)  # the first place is used unless all are empty
    hidden = gradient.gather(1, used).masked_fill(first >= 0, -torch.inf)
    gradient.scatter_(1, used, hidden)


def most_active(problem: GramProblem) -> float:
    """Active columns of a sample beyond which it is better solved alone."""
    if problem.units is None or len(problem.units) <= problem.units.shape[1]:
        return torch.inf
    return max(SATURATED_LEAST, SATURATED_SHARE * problem.units.shape[1])


def _enlarge(problem: GramProblem, state: _State, candidates: Tensor, values: Tensor, used: int) -> _State:
    """One round: add candidates, solve, drop; keep the result where the objective fell."""
    best = values == values.amax(dim=1, keepdim=True)
    candidates = candidates.masked_fill(state.careful[:, None] & ~best, -1)
    columns = torch.cat((state.columns, candidates), dim=1)
    weights = torch.cat((state.weights, torch.zeros_like(values)), dim=1)
    width = used + candidates.shape[1]
    columns, weights = _packed(columns, weights, width)
    solution, right = _drop_until_positive(problem, columns, weights, state.careful)
    objective = -(right * solution).sum(dim=1) / 2
    columns = columns.masked_fill(~(solution > 0), -1)
    lower = objective < state.objective - LEAST_PROGRESS * state.objective.abs()
    tried = (candidates >= 0).any(dim=1)  # the others are done already and only not yet moved away
    old_columns, old_weights = _padded(state.columns, width, -1), _padded(state.weights, width, 0)
    return _State(
        state.sample,
        torch.where(lower[:, None], columns, old_columns),
        torch.where(lower[:, None], solution, old_weights),
        torch.where(lower, objective, state.objective),
        ~lower & tried,
        state.stuck | (~lower & tried & state.careful),
    )


def _drop_until_positive(
    problem: GramProblem, columns: Tensor, weights: Tensor, careful: Tensor
) -> tuple[Tensor, Tensor]:
    """Solves on the columns, drops what is not positive, and so on.

    Ordinary samples drop every negative column at once. Careful ones step from the present weights towards
    the solution until the first weight is zero, and drop only that.

    Returns:
        solution and right-hand side, ``(B, n)``; the solution is zero where a column was dropped.
    """
    full = solve_on(problem, columns)
    solution = full.solution.clone()
    rows = (~(solution > 0) & (columns >= 0)).any(dim=1).nonzero()[:, 0]
    part, part_columns, part_weights = solution[rows], columns[rows], weights[rows]
    dropped = _Dropped.none(full, rows)
    while len(rows):
        negative = (part_columns >= 0) & ~(part > 0)
        ratio = torch.where(negative, part_weights / (part_weights - part), torch.inf)
        shortest = ratio.amin(dim=1, keepdim=True)
        stay = careful[rows][:, None] & (ratio > shortest)
        part_weights = (part_weights + shortest * (part - part_weights)).clamp(min=0)
        gone = negative & ~stay
        part_columns = part_columns.masked_fill(gone, -1)
        dropped = dropped.with_more(gone)
        part = dropped.solution().masked_fill(part_columns < 0, 0.0)
        again = full.pivot[rows] < SAFE_PIVOT  # differences of large numbers: factor again
        if bool(again.any()):
            part[again] = solve_on(problem, part_columns[again], rows=rows[again]).solution.masked_fill(
                part_columns[again] < 0, 0.0
            )
        solution[rows] = part
        left = (~(part > 0) & (part_columns >= 0)).any(dim=1)
        rows, part, part_columns, part_weights = rows[left], part[left], part_columns[left], part_weights[left]
        dropped = dropped.select(left)
    return solution, full.right


class _Dropped(NamedTuple):
    """Solutions without some columns from the factor with them: ``x - V S^-1 x_D``, ``V = G^-1 E_D``, ``S =
    E_D^T V``.
    """

    full: Tensor  # (B, n), x
    factor: Tensor  # (B, n, n)
    places: Tensor  # (B, d), int64, dropped places D; -1 where unused
    inverse: Tensor  # (B, n, d), V

    @classmethod
    def none(cls, full: LeastSquares, rows: Tensor) -> _Dropped:
        solution = full.solution[rows]
        return cls(solution, full.factor[rows], rows.new_zeros(len(rows), 0), solution[:, :, None][:, :, :0])

    def select(self, rows: Tensor) -> _Dropped:
        return _Dropped(*(field[rows] for field in self))

    def with_more(self, gone: Tensor) -> _Dropped:
        count = int(gone.sum(dim=1).max())
        places = torch.where(gone, torch.arange(gone.shape[1], device=gone.device), -1)
        places = places.sort(dim=1, descending=True).values[:, :count]
        columns = torch.zeros_like(self.factor[:, :, :1]).expand(-1, -1, count).clone()
        columns.scatter_(1, places.clamp(min=0)[:, None, :], (places >= 0).to(columns.dtype)[:, None, :])
        inverse = _by_factor(self.factor, columns)
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


def _packed(columns: Tensor, weights: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Moves used places to the front and cuts the rows to ``width``."""
    present = columns >= 0
    place = torch.where(present, present.cumsum(dim=1) - 1, width)
    shape = (len(columns), width + 1)
    packed_columns = columns.new_full(shape, -1).scatter_(1, place, columns)[:, :width]
    packed_weights = weights.new_zeros(shape).scatter_(1, place, weights)[:, :width]
    return packed_columns, packed_weights


def _padded(values: Tensor, width: int, fill: float) -> Tensor:
    extra = width - values.shape[1]
    return torch.nn.functional.pad(values, (0, extra), value=fill) if extra >= 0 else values[:, :width]


def _empty_state(problem: GramProblem) -> _State:
    batch, device = len(problem.products), problem.products.device
    false = torch.zeros(batch, dtype=torch.bool, device=device)
    return _State(
        sample=torch.arange(batch, device=device),
        columns=torch.full((batch, 1), -1, device=device),
        weights=problem.products.new_zeros(batch, 1),
        objective=problem.products.new_zeros(batch),
        careful=false,
        stuck=false,
    )


def _collect(done: list[_State], rest: _State, batch: int) -> ActiveSets:
    """Puts finished and unfinished samples back in their places, at the width of the largest set."""
    states = [*done, rest]
    width = max(1, *(int((s.columns >= 0).sum(dim=1).amax()) if len(s.sample) else 0 for s in states))
    columns = rest.columns.new_full((batch, width), -1)
    weights = rest.weights.new_zeros(batch, width)
    converged = torch.zeros(batch, dtype=torch.bool, device=columns.device)
    for state in states:
        columns[state.sample], weights[state.sample] = _packed(state.columns, state.weights, width)
    for state in done:
        converged[state.sample] = ~state.stuck
    return ActiveSets(columns, weights, converged)
