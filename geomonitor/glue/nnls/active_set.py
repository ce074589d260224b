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

from geomonitor.glue.nnls.column_drops import drop_until_positive, places_of
from geomonitor.glue.nnls.gram_problem import GramProblem, signed_gradient

# A column of length one violates its constraint if the residual (of a target of length one) leans to it by
# this ...
VIOLATION = 1e-12
# ... or by what rounding can do: sums of products of unit columns err by about this much per unit of dual
# mass.
ROUNDING_PER_MASS = 1e-14
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
        counts = problem.group.new_zeros(len(problem.gram)).scatter_add_(0, problem.group, going.long())
        told = torch.stack((going.sum(), width, counts.amax()))
        remaining, used, largest = told.tolist()  # the one synchronisation of a round
        if remaining <= (1 - DONE_SHARE) * len(going):
            done.append(state.select(places_of(~going, len(going) - remaining)))
            kept = places_of(going, remaining)
            problem, state = problem.select(kept, largest), state.select(kept)
            candidates, values = candidates[kept], values[kept]
        if remaining == 0:
            break
        state = _enlarge(problem, state, candidates, values, used)
    return _collect(done, state, batch)


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
    solution, right = drop_until_positive(problem, columns, weights, state.careful)
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
