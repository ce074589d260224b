"""Block principal pivoting for one direction after the other, written as loops for a compiler.

The rounds are the same as in `block_pivoting`: add the worst violated column of each class, solve, drop what is not
positive; if the objective did not fall, go back and take one careful step of Lawson and Hanson. Here the triangular
factor is kept and changed column by column, which costs ``n^2`` instead of ``n^3`` for a new factor.
`block_pivoting_compiled` hands these functions to numba; without a compiler they give the same numbers, slowly.

The factor ``R`` is upper triangular, ``R^T R`` the Gram matrix of the signed active columns plus the ridge, and
``z = R^-T b``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

# If more directions than this, and half of all so far, need another method, the rest of the batch goes there at once.
FEW_FAILURES = 3


class Limits(NamedTuple):
    """When to stop; see the constants of `block_pivoting` and `block_pivoting_compiled`."""

    rounds: int
    violation: float
    rounding_per_mass: float
    least_progress: float
    share: float
    least_pivot: float
    refinements: int


class Direction(NamedTuple):
    """One problem."""

    gram: Array  # (C, C), unit diagonal; zero in padded columns
    ridge: float
    products: Array  # (C,)
    signs: Array  # (C,)


class State(NamedTuple):
    """An active set; only the first places are in use."""

    active: Index  # (n,), columns
    weights: Array  # (n,)
    z: Array  # (n,)
    factor: Array  # (n, n), upper triangle of R


class Results(NamedTuple):
    """What the directions come to."""

    columns: Index  # (B, n), active columns; -1 where unused
    weights: Array  # (B, n), theirs; 0 where unused
    pivots: Array  # (B,), smallest squared diagonal entry of the factor; -1 if another method is needed


def solve_directions(
    gram: Array,
    ridge: float,
    group: Index,
    products: Array,
    signs: Array,
    segment: int,
    limits: Limits,
    results: Results,
) -> None:
    """Solves every direction of a batch, from the columns that the results hold at the beginning.

    Args:
        gram: ``(G, C, C)``.
        ridge: added to its diagonal.
        group: ``(B,)``.
        products: ``(B, C)``.
        signs: ``(B, C)``.
        segment: columns per segment.
        limits: when to stop.
        results: filled in; at most ``n`` columns may be active.
    """
    columns, weights, pivots = results.columns, results.weights, results.pivots
    most = columns.shape[1]
    state, old = _empty(most), _empty(most)
    solution, gradient = np.empty(most), np.empty(products.shape[1])
    failures = 0
    for row in range(len(products)):
        direction = Direction(gram[group[row]], ridge, products[row], signs[row])
        count = _start(direction, columns[row], limits.least_pivot, state, solution)
        if count >= 0:
            count = _solve_direction(direction, segment, limits, state, old, solution, gradient, count)
        if count < 0:
            failures += 1
            if failures > FEW_FAILURES and 2 * failures > row:
                return
            continue
        pivots[row] = 1.0
        for i in range(count):
            columns[row, i] = state.active[i]
            weights[row, i] = max(state.weights[i], 0.0)
            pivots[row] = min(pivots[row], state.factor[i, i] ** 2)


def _empty(most: int) -> State:
    return State(np.empty(most, np.int64), np.empty(most), np.empty(most), np.zeros((most, most)))


def _start(direction: Direction, columns: Index, least_pivot: float, state: State, solution: Array) -> int:
    """Puts the columns of a guess into the state and takes them out of the results; -1 if they are dependent."""
    count = 0
    for i in range(len(columns)):
        if columns[i] >= 0 and count >= 0:
            count = count + 1 if _append(direction, state, count, columns[i], least_pivot, solution) else -1
        columns[i] = -1
    if count > 0:
        count = _drop_until_positive(state, count, solution, False)
        for i in range(count):
            state.weights[i] = solution[i]
    return count


def _solve_direction(
    direction: Direction,
    segment: int,
    limits: Limits,
    state: State,
    old: State,
    solution: Array,
    gradient: Array,
    count: int,
) -> int:
    """Number of active columns in the state, of ``count`` at the beginning; -1 if another method is needed."""
    objective, careful, share = 0.0, False, 0.0
    for i in range(count):
        objective -= 0.5 * direction.products[state.active[i]] * state.weights[i]
    for _ in range(limits.rounds):
        _gradient(direction, state, count, gradient)
        mass = 0.0
        for i in range(count):
            mass += state.weights[i]
        tolerance = max(limits.violation, limits.rounding_per_mass * mass)
        old_count = count
        _copy(count, state, old)
        length = len(gradient) if careful else segment
        least = max(tolerance, share * np.max(gradient))
        count = _add_worst(direction, state, count, gradient, length, least, limits.least_pivot, solution)
        if count < 0:
            return -1
        if count == old_count:
            _refine(direction, state, count, solution, limits.refinements)
            return count
        count = _drop_until_positive(state, count, solution, careful)
        new = 0.0
        for i in range(count):
            new -= 0.5 * direction.products[state.active[i]] * solution[i]
        if new < objective - limits.least_progress * abs(objective):
            share = limits.share if careful else limits.share * share
            objective, careful = new, False
            for i in range(count):
                state.weights[i] = solution[i]
        elif careful:
            return -1
        else:
            count, careful = old_count, True
            _copy(count, old, state)
    return -1


def _copy(count: int, source: State, target: State) -> None:
    for i in range(count):
        target.active[i], target.weights[i], target.z[i] = source.active[i], source.weights[i], source.z[i]
        for j in range(i, count):
            target.factor[i, j] = source.factor[i, j]


def _gradient(direction: Direction, state: State, count: int, gradient: Array) -> None:
    """Descent direction ``y <u, t - sum_j x_j y_j u_j>`` of every column; minus infinity for active ones."""
    products, signs = direction.products, direction.signs
    for j in range(len(gradient)):
        gradient[j] = 0.0
    for i in range(count):
        row, weight = direction.gram[state.active[i]], signs[state.active[i]] * state.weights[i]
        for j in range(len(gradient)):
            gradient[j] += weight * row[j]
    for j in range(len(gradient)):
        gradient[j] = products[j] - signs[j] * gradient[j]
    for i in range(count):
        gradient[state.active[i]] = -np.inf


def _add_worst(
    direction: Direction,
    state: State,
    count: int,
    gradient: Array,
    length: int,
    least: float,
    least_pivot: float,
    entries: Array,
) -> int:
    """Appends the worst column of every ``length`` if violated by ``least``; -1: no room, or dependent columns."""
    for start in range(0, len(gradient), length):
        column = start
        for j in range(start + 1, start + length):
            if gradient[j] > gradient[column]:
                column = j
        if gradient[column] >= least:
            if count == len(state.active) or not _append(direction, state, count, column, least_pivot, entries):
                return -1
            count += 1
    return count


def _append(direction: Direction, state: State, count: int, column: int, least_pivot: float, entries: Array) -> bool:
    """Puts a column at the end of the factor, unless it depends on the others; ``entries`` is for its own use."""
    active, factor, signs, row = state.active, state.factor, direction.signs, direction.gram[column]
    for i in range(count):
        entries[i] = signs[column] * signs[active[i]] * row[active[i]]
    pivot, right = row[column] + direction.ridge, direction.products[column]
    for i in range(count):
        entry = entries[i] / factor[i, i]
        pivot -= entry * entry
        right -= entry * state.z[i]
        rest, source = entries[i + 1 : count], factor[i, i + 1 : count]
        for j in range(len(rest)):
            rest[j] -= entry * source[j]
        factor[i, count] = entry
    if not pivot > least_pivot:
        return False
    factor[count, count] = np.sqrt(pivot)
    state.z[count] = right / factor[count, count]
    active[count], state.weights[count] = column, 0.0
    return True


def _back_substitute(factor: Array, right: Array, count: int, solution: Array) -> None:
    """``R^-1 right``."""
    for i in range(count - 1, -1, -1):
        row, known = factor[i, i + 1 : count], solution[i + 1 : count]
        total = 0.0
        for j in range(len(row)):
            total += row[j] * known[j]
        solution[i] = (right[i] - total) / factor[i, i]


def _drop_until_positive(state: State, count: int, solution: Array, careful: bool) -> int:
    """Solves on the active columns, drops what is not positive, and so on; careful: one at a time, by ratio."""
    present = state.weights
    while True:
        _back_substitute(state.factor, state.z, count, solution)
        negative, shortest = False, np.inf
        for i in range(count):
            if not solution[i] > 0:
                negative = True
                shortest = min(shortest, present[i] / (present[i] - solution[i]))
        if not negative:
            return count
        for i in range(count - 1, -1, -1):
            bad = not solution[i] > 0
            if bad and careful:
                bad = present[i] / (present[i] - solution[i]) <= shortest
            present[i] += shortest * (solution[i] - present[i])
            if bad:
                _remove(state, count, i)
                count -= 1


def _remove(state: State, count: int, place: int) -> None:
    """Takes a column out: what was below it is updated by its row, rotation by rotation."""
    active, present, z, factor = state.active, state.weights, state.z, state.factor
    last = count - 1
    row, right = np.empty(last - place), z[place]
    for j in range(last - place):
        row[j] = factor[place, place + 1 + j]
    for i in range(place):
        for j in range(place, last):
            factor[i, j] = factor[i, j + 1]
    for i in range(place, last):
        diagonal, own = factor[i + 1, i + 1], row[i - place]
        length = np.sqrt(diagonal * diagonal + own * own)
        cosine, sine = diagonal / length, own / length
        factor[i, i] = length
        source, target, rest = factor[i + 1, i + 2 : count], factor[i, i + 1 : last], row[i + 1 - place :]
        for j in range(len(rest)):
            moved = cosine * source[j] + sine * rest[j]
            rest[j] = cosine * rest[j] - sine * source[j]
            target[j] = moved
        moved = cosine * z[i + 1] + sine * right
        right = cosine * right - sine * z[i + 1]
        z[i] = moved
        active[i], present[i] = active[i + 1], present[i + 1]


def _refine(direction: Direction, state: State, count: int, correction: Array, steps: int) -> None:
    """Removes from the weights what rounding in the changes of the factor has left."""
    active, weights, factor, signs = state.active, state.weights, state.factor, direction.signs
    for _ in range(steps):
        for i in range(count):
            row, total = direction.gram[active[i]], direction.products[active[i]] - direction.ridge * weights[i]
            for j in range(count):
                total -= signs[active[i]] * signs[active[j]] * row[active[j]] * weights[j]
            correction[i] = total
        for i in range(count):
            correction[i] /= factor[i, i]
            row, rest = factor[i, i + 1 : count], correction[i + 1 : count]
            for j in range(len(row)):
                rest[j] -= correction[i] * row[j]
        _back_substitute(factor, correction, count, correction)
        for i in range(count):
            weights[i] += correction[i]
