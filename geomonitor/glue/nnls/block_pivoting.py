"""Block principal pivoting with a step of Lawson and Hanson as the backup rule, for a batch of directions at once.

Each round adds, for every direction, the worst violated column of each segment (class), solves for the enlarged set,
and drops all negative columns until none is left. If that did not lower the objective, the direction goes back to its
last good set and takes one careful round: one column, with the ratio steps of Lawson and Hanson, which always descend.

Source: Portugal, Judice, Vicente, Math. Comp. 63 (1994): exchange of blocks, and a backup rule if they make no
progress; Kim, Park, SIAM J. Sci. Comput. 33 (2011): the same for many right-hand sides, after Van Benthem, Keenan,
J. Chemometrics 18 (2004). Lawson, Hanson, Solving Least Squares Problems (1974), chapter 23: the careful round.
Differs: of the violated columns only the worst of each class enters (all of them cycle on these problems); negative
columns are dropped until the set is feasible; progress is the fall of the objective, not of the number of violations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomonitor.glue.nnls.gram_problem import ActiveSets, GramProblem, signed_gradient, solve_on

# A column of length one violates its constraint if the residual (of a target of length one) leans to it by this ...
VIOLATION = 1e-12
# ... or by what rounding can do: sums of products of unit columns err by about this much per unit of dual mass.
ROUNDING_PER_MASS = 1e-14
# The objective must fall by this part of itself: less is rounding.
LEAST_PROGRESS = 1e-14
# A batch is made smaller when this part of its directions is done; before, moving the rest costs more than it saves.
DONE_SHARE = 0.1
# After a careful round only columns enter that are violated by this part of the worst violation; the part falls by the
# same factor with every round that descends. Without it nearly all rounds at the end of a hard problem are careful.
SHARE = 0.5
# After this number of rounds the open directions go to another method. Ordinary batches need 5 to 30 rounds, random
# points 200 if there are more than twice as many points as dimensions.
ROUNDS = 300
# With more points than dimensions a direction with this share of as many active columns as dimensions grows slowly and
# ends in factors of full size, a new one in every pass: another method then takes less than half of the time. Small
# problems never cost much.
SATURATED_SHARE, SATURATED_LEAST = 0.75, 96
# Two steps divide what JITTER (1e-13) changed twice by 1e6 even if a column is within 1e-3 of the others' span.
REFINEMENTS = 2


def most_active(problem: GramProblem, share: float = SATURATED_SHARE) -> float:
    """Active columns of a direction beyond which another method is faster."""
    if problem.units is None or len(problem.units) <= problem.units.shape[1]:
        return torch.inf
    return max(SATURATED_LEAST, share * problem.units.shape[1])


def solve_batch(problem: GramProblem, start: Tensor | None = None, *, rounds: int = ROUNDS) -> ActiveSets:
    """Solves every direction of a batch, on any device.

    Args:
        problem: the batch.
        start: ``(B, n)``, columns of a guess, -1 where unused; None: no column.
        rounds: cap; directions that are still open after it come back as not converged.

    >>> problem = GramProblem(torch.eye(2).double()[None], torch.tensor([[0.6, -0.8]]).double(),
    ...                       torch.ones(1, 2).double(), torch.tensor([0]), 1)
    >>> solve_batch(problem).weights
    tensor([[0.6000]], dtype=torch.float64)
    """
    sets = search(problem, start, rounds=rounds)
    solution, _, pivot = solve_on(problem, sets.columns, refinements=REFINEMENTS)
    good = solution.isfinite().all(dim=1, keepdim=True)
    return sets._replace(weights=torch.where(good, solution, sets.weights).clamp(min=0), pivot=pivot)


def search(problem: GramProblem, start: Tensor | None = None, *, rounds: int = ROUNDS) -> ActiveSets:
    """The active sets, with weights before refinement and without pivots."""
    state = _empty_state(problem) if start is None else _state_from(problem, start)
    batch = len(state.row)
    most = most_active(problem) if start is None else torch.inf  # few rounds are left
    done: list[_State] = []
    for _ in range(rounds):
        gradient = signed_gradient(problem, state.columns, state.weights)
        candidates, values = _worst_per_segment(problem, state, gradient)
        active = (state.columns >= 0).sum(dim=1)
        state = state._replace(stuck=state.stuck | (active > most))
        going = (candidates >= 0).any(dim=1) & ~state.stuck
        width = active.amax() if batch else going.sum()
        counts = problem.group.new_zeros(len(problem.gram)).scatter_add_(0, problem.group, going.long())
        answers = torch.stack((going.sum(), width, counts.amax()))
        remaining, used, largest = answers.tolist()  # the one synchronisation of a round
        if remaining <= (1 - DONE_SHARE) * len(going):
            done.append(state.select(_places_of(~going, len(going) - remaining)))
            kept = _places_of(going, remaining)
            problem, state = problem.select(kept, largest), state.select(kept)
            candidates, values = candidates[kept], values[kept]
        if remaining == 0:
            break
        state = _enlarge(problem, state, candidates, values, used)
    return _collect(done, state, batch)


class _State(NamedTuple):
    row: Tensor  # (B,), int64, row in the whole batch
    columns: Tensor  # (B, n), int64, -1 where unused
    weights: Tensor  # (B, n)
    objective: Tensor  # (B,)
    careful: Tensor  # (B,), bool: the last round did not descend
    share: Tensor  # (B,), of the worst violation: columns with less do not enter
    stuck: Tensor  # (B,), bool: not even a careful round descended, or too many columns

    def select(self, rows: Tensor) -> _State:
        return _State(*(field[rows] for field in self))


def _worst_per_segment(problem: GramProblem, state: _State, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Most violated column of each segment, ``(B, C / segment)``: number (-1: none is violated) and violation."""
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


def _enlarge(problem: GramProblem, state: _State, candidates: Tensor, values: Tensor, used: int) -> _State:
    """One round: add candidates, solve, drop; keep the result if the objective fell."""
    worst = values.amax(dim=1, keepdim=True)
    best = values == worst
    small = values < state.share[:, None] * worst
    candidates = candidates.masked_fill(torch.where(state.careful[:, None], ~best, small), -1)
    columns = torch.cat((state.columns, candidates), dim=1)
    weights = torch.cat((state.weights, torch.zeros_like(values)), dim=1)
    width = used + candidates.shape[1]
    columns, weights = _packed(columns, weights, width)
    solution, right = drop_until_positive(problem, columns, weights, state.careful)
    objective = -(right * solution).sum(dim=1) / 2
    columns = columns.masked_fill(~(solution > 0), -1)
    lower = objective < state.objective - LEAST_PROGRESS * state.objective.abs()
    tried = (candidates >= 0).any(dim=1)  # the others are done already and only not yet moved away
    old_columns, old_weights = _packed(state.columns, state.weights, width)
    return _State(
        state.row,
        torch.where(lower[:, None], columns, old_columns),
        torch.where(lower[:, None], solution, old_weights),
        torch.where(lower, objective, state.objective),
        ~lower & tried,
        torch.where(lower, SHARE * torch.where(state.careful, 1.0, state.share), state.share),
        state.stuck | (~lower & tried & state.careful),
    )


def drop_until_positive(
    problem: GramProblem, columns: Tensor, weights: Tensor, careful: Tensor
) -> tuple[Tensor, Tensor]:
    """Solves on the columns, drops what is not positive, and so on; each pass waits for the device once.

    Ordinary directions drop every negative column at once. Careful ones step from the present weights towards the
    solution until the first weight is zero, and drop only that.

    Returns:
        solution and right-hand side, ``(B, n)``; the solution is zero for dropped columns.
    """
    part, right, _ = solve_on(problem, columns)
    solution = part.clone()
    rows = torch.arange(len(columns), device=columns.device)
    while True:
        negative = (columns >= 0) & ~(part > 0)
        ratio = torch.where(negative, weights / (weights - part), torch.inf)
        shortest = ratio.amin(dim=1, keepdim=True)
        gone = negative & ~(careful[:, None] & (ratio > shortest))
        open_ = negative.any(dim=1)
        [left] = open_.sum(dim=0, keepdim=True).tolist()  # the one synchronisation of a pass
        if not left:
            return solution, right
        kept = _places_of(open_, left)
        rows, careful, gone, weights, shortest = rows[kept], careful[kept], gone[kept], weights[kept], shortest[kept]
        weights = (weights + shortest * (part[kept] - weights)).clamp(min=0)
        columns = columns[kept].masked_fill(gone, -1)
        part = solve_on(problem, columns, rows=rows).solution.masked_fill(columns < 0, 0.0)
        solution[rows] = part


def _places_of(mask: Tensor, count: int) -> Tensor:
    """Positions at which the mask ``(B,)`` holds, ascending; ``count`` of them, for which `nonzero` would wait."""
    return mask.to(torch.int8).argsort(descending=True, stable=True)[:count]


def _packed(columns: Tensor, weights: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Moves used places to the front and makes the rows ``width`` wide."""
    present = columns >= 0
    place = torch.where(present, present.cumsum(dim=1) - 1, width)
    shape = (len(columns), width + 1)
    packed_columns = columns.new_full(shape, -1).scatter_(1, place, columns)[:, :width]
    packed_weights = weights.new_zeros(shape).scatter_(1, place, weights)[:, :width]
    return packed_columns, packed_weights


def _empty_state(problem: GramProblem) -> _State:
    batch, device = len(problem.products), problem.products.device
    false = torch.zeros(batch, dtype=torch.bool, device=device)
    return _State(
        row=torch.arange(batch, device=device),
        columns=torch.full((batch, 1), -1, device=device),
        weights=problem.products.new_zeros(batch, 1),
        objective=problem.products.new_zeros(batch),
        careful=false,
        share=problem.products.new_zeros(batch),
        stuck=false,
    )


def _state_from(problem: GramProblem, start: Tensor) -> _State:
    empty = _empty_state(problem)
    weights = problem.products.new_zeros(start.shape)
    solution, right = drop_until_positive(problem, start, weights, empty.careful)
    columns = start.masked_fill(~(solution > 0), -1)
    return empty._replace(columns=columns, weights=solution, objective=-(right * solution).sum(dim=1) / 2)


def _collect(done: list[_State], rest: _State, batch: int) -> ActiveSets:
    """Puts finished and unfinished directions back in their places, at the width of the largest set."""
    states = [*done, rest]
    width = max(1, *(int((s.columns >= 0).sum(dim=1).amax()) if len(s.row) else 0 for s in states))
    columns = rest.columns.new_full((batch, width), -1)
    weights = rest.weights.new_zeros(batch, width)
    converged = torch.zeros(batch, dtype=torch.bool, device=columns.device)
    for state in states:
        columns[state.row], weights[state.row] = _packed(state.columns, state.weights, width)
    for state in done:
        converged[state.row] = ~state.stuck
    return ActiveSets(columns, weights, converged, weights.new_full((batch,), -1.0))
