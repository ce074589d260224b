"""Non-negative least squares for one sample after the other, written as loops for a compiler.

The rounds are those of `active_set`: add the worst violated column of each class, solve, drop what is not positive; if
the objective did not fall, go back and take one careful step of Lawson and Hanson. Here the triangular factor is kept
and changed column by column, which costs ``n^2`` where a new factor costs ``n^3``. `compiled` hands these functions to
numba; uncompiled they give the same numbers, slowly.

The factor ``R`` is upper triangular, ``R^T R`` the Gram matrix of the signed active columns, ``z = R^-T b``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

# When more samples than this, and half of all so far, need another method, the rest of the batch goes there at once.
FEW_FAILURES = 3


def solve_samples(
    gram: Array,
    group: Index,
    products: Array,
    signs: Array,
    segment: int,
    limits: Array,
    columns: Index,
    weights: Array,
    pivots: Array,
) -> None:
    """Solves every sample of a batch.

    Args:
        gram: ``(G, C, C)``, unit diagonal; zero in padded columns.
        group: ``(B,)``.
        products: ``(B, C)``.
        signs: ``(B, C)``.
        segment: columns per segment.
        limits: rounds, violation, rounding per mass, least progress, least pivot, refinements.
        columns: ``(B, n)``, result: active columns, -1 where unused. At most ``n`` may be active.
        weights: ``(B, n)``, result: their weights, 0 where unused.
        pivots: ``(B,)``, given as -1, result: smallest squared diagonal entry of the factor; -1: not solved.
    """
    most = columns.shape[1]
    active, old_active = np.empty(most, np.int64), np.empty(most, np.int64)
    factor, old_factor = np.zeros((most, most)), np.zeros((most, most))
    vectors, gradient = np.zeros((5, most)), np.empty(products.shape[1])
    failures = 0
    for sample in range(len(products)):
        own = gram[group[sample]]
        count = _solve_sample(
            own,
            products[sample],
            signs[sample],
            segment,
            limits,
            active,
            old_active,
            factor,
            old_factor,
            vectors,
            gradient,
        )
        if count < 0:
            failures += 1
            if failures > FEW_FAILURES and 2 * failures > sample:
                return
            continue
        pivots[sample] = 1.0
        for i in range(count):
            columns[sample, i] = active[i]
            weights[sample, i] = max(vectors[0, i], 0.0)
            pivots[sample] = min(pivots[sample], factor[i, i] ** 2)


def _solve_sample(
    gram: Array,
    products: Array,
    signs: Array,
    segment: int,
    limits: Array,
    active: Index,
    old_active: Index,
    factor: Array,
    old_factor: Array,
    vectors: Array,
    gradient: Array,
) -> int:
    """Number of active columns, whose weights are then in ``vectors[0]``; -1 if another method is needed."""
    present, solution, z, old_present, old_z = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]
    count, objective, careful = 0, 0.0, False
    for _ in range(int(limits[0])):
        _gradient(gram, products, signs, active, present, count, gradient)
        mass = 0.0
        for i in range(count):
            mass += present[i]
        tolerance = max(limits[1], limits[2] * mass)
        old_count = count
        _copy(count, active, present, z, factor, old_active, old_present, old_z, old_factor)
        count = _add_worst(
            gram,
            products,
            signs,
            segment,
            tolerance,
            careful,
            limits[4],
            active,
            present,
            z,
            factor,
            count,
            gradient,
            solution,
        )
        if count < 0:
            return -1
        if count == old_count:
            _refine(gram, products, signs, active, factor, count, present, solution, int(limits[5]))
            return count
        count = _drop_until_positive(active, factor, z, present, solution, count, careful)
        new = 0.0
        for i in range(count):
            new -= 0.5 * products[active[i]] * solution[i]
        if new < objective - limits[3] * abs(objective):
            objective, careful = new, False
            for i in range(count):
                present[i] = solution[i]
        elif careful:
            return -1
        else:
            count, careful = old_count, True
            _copy(count, old_active, old_present, old_z, old_factor, active, present, z, factor)
    return -1


def _copy(
    count: int,
    active: Index,
    present: Array,
    z: Array,
    factor: Array,
    to_active: Index,
    to_present: Array,
    to_z: Array,
    to_factor: Array,
) -> None:
    for i in range(count):
        to_active[i], to_present[i], to_z[i] = active[i], present[i], z[i]
        for j in range(i, count):
            to_factor[i, j] = factor[i, j]


def _gradient(
    gram: Array, products: Array, signs: Array, active: Index, weights: Array, count: int, gradient: Array
) -> None:
    """Descent direction ``y <u, t - sum_j x_j y_j u_j>`` of every column; minus infinity for active ones."""
    for j in range(len(gradient)):
        gradient[j] = 0.0
    for i in range(count):
        row, weight = gram[active[i]], signs[active[i]] * weights[i]
        for j in range(len(gradient)):
            gradient[j] += weight * row[j]
    for j in range(len(gradient)):
        gradient[j] = products[j] - signs[j] * gradient[j]
    for i in range(count):
        gradient[active[i]] = -np.inf


def _add_worst(
    gram: Array,
    products: Array,
    signs: Array,
    segment: int,
    tolerance: float,
    careful: bool,
    least_pivot: float,
    active: Index,
    present: Array,
    z: Array,
    factor: Array,
    count: int,
    gradient: Array,
    scratch: Array,
) -> int:
    """Appends the worst violated column of each segment (careful: of all); -1: no room, or dependent columns."""
    length = len(gradient) if careful else segment
    for start in range(0, len(gradient), length):
        column = start
        for j in range(start + 1, start + length):
            if gradient[j] > gradient[column]:
                column = j
        if not gradient[column] > tolerance:
            continue
        if count == len(active):
            return -1
        row = gram[column]
        for i in range(count):
            scratch[i] = signs[column] * signs[active[i]] * row[active[i]]
        pivot, right = row[column], products[column]
        for i in range(count):
            entry = scratch[i] / factor[i, i]
            pivot -= entry * entry
            right -= entry * z[i]
            rest, source = scratch[i + 1 : count], factor[i, i + 1 : count]
            for j in range(len(rest)):
                rest[j] -= entry * source[j]
            factor[i, count] = entry
        if not pivot > least_pivot:
            return -1
        factor[count, count] = np.sqrt(pivot)
        z[count] = right / factor[count, count]
        active[count], present[count] = column, 0.0
        count += 1
    return count


def _back_substitute(factor: Array, z: Array, count: int, solution: Array) -> None:
    """``R^-1 z``."""
    for i in range(count - 1, -1, -1):
        row, known = factor[i, i + 1 : count], solution[i + 1 : count]
        total = 0.0
        for j in range(len(row)):
            total += row[j] * known[j]
        solution[i] = (z[i] - total) / factor[i, i]


def _drop_until_positive(
    active: Index, factor: Array, z: Array, present: Array, solution: Array, count: int, careful: bool
) -> int:
    """Solves on the active columns, drops what is not positive, and so on; careful: one at a time, by ratio."""
    while True:
        _back_substitute(factor, z, count, solution)
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
                _remove(active, factor, z, present, count, i)
                count -= 1


def _remove(active: Index, factor: Array, z: Array, present: Array, count: int, place: int) -> None:
    """Takes a column out: what was below it is updated by its row, rotation by rotation."""
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
    for i in range(place, last):
        active[i], present[i] = active[i + 1], present[i + 1]


def _refine(
    gram: Array,
    products: Array,
    signs: Array,
    active: Index,
    factor: Array,
    count: int,
    weights: Array,
    correction: Array,
    steps: int,
) -> None:
    """Removes from the weights what rounding in the changes of the factor has left."""
    for _ in range(steps):
        for i in range(count):
            column = active[i]
            row, total = gram[column], products[column]
            for j in range(count):
                total -= signs[column] * signs[active[j]] * row[active[j]] * weights[j]
            correction[i] = total
        for i in range(count):
            correction[i] /= factor[i, i]
            row, rest = factor[i, i + 1 : count], correction[i + 1 : count]
            for j in range(len(row)):
                rest[j] -= correction[i] * row[j]
        _back_substitute(factor, correction, count, correction)
        for i in range(count):
            weights[i] += correction[i]
