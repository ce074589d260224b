"""The random draws of a measurement: directions, dichotomies and class pairs, the same on every device."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from geomonitor._options import Range
from geomonitor.errors import InputError

Dichotomies = Literal["balanced", "random", "one-vs-rest"]

# Each kind of draw has its own stream, so that the directions of a seed depend on neither `P` nor the dichotomies.
_DIRECTIONS, _DICHOTOMIES, _PAIRS = 0, 1, 2
_STREAMS = 3
# Keeps the draws apart from features that were made with `torch.manual_seed(seed)` and a small seed: with equal seeds
# the first directions would be the first features.
_SALT = 0x6E0D15C0
SEEDS = Range(0, 2**61, ends="[)", whole=True)
"""Seeds whose streams all have numbers that a ``torch.Generator`` takes."""
MOST_DIRECTIONS = 1_000_000
"""More need more memory than they can be worth: standard errors fall with the root of their number."""
DIRECTIONS = Range(2, MOST_DIRECTIONS, ends="[]", whole=True)
# Directions of a protocol that take no more than this are kept for its next measurement.
_KEPT_BYTES = 2**23


def draw_directions(count: int, dimension: int, *, seed: int) -> Tensor:
    """Standard normal directions ``t``.

    Args:
        count: ``T``, number of directions.
        dimension: ``N``, feature dimension.
        seed: the same seed, ``T`` and ``N`` give the same directions, always.

    Returns:
        ``(T, N)``, float64, on the CPU.

    >>> bool((draw_directions(3, 4, seed=1) == draw_directions(3, 4, seed=1)).all())
    True
    """
    # Normals of 24 bits are drawn five times faster than those of 53, and no measure shows the difference.
    return torch.randn(count, dimension, generator=_stream(seed, _DIRECTIONS)).to(torch.float64)


def draw_dichotomies(count: int, classes: int, kind: Dichotomies, *, seed: int) -> Tensor:
    """Signs ``y``: one per class and direction.

    ``"balanced"`` is uniform over dichotomies with ``floor(P/2)`` positive classes (odd ``P``: ``floor`` or
    ``ceil`` with equal chance), ``"random"`` a fair coin per class, ``"one-vs-rest"`` one positive class.

    Args:
        count: ``T``, number of dichotomies.
        classes: ``P``, number of classes.
        kind: the ensemble.
        seed: the same seed gives the same signs.

    Returns:
        ``(T, P)``, float64, entries +1 and -1, on the CPU.

    >>> draw_dichotomies(2, 4, "balanced", seed=0).sum(dim=1).tolist()
    [0.0, 0.0]
    """
    stream = _stream(seed, _DICHOTOMIES)
    scores = torch.rand(count, classes, generator=stream, dtype=torch.float64)
    if kind == "random":
        positive = scores < 0.5
    else:
        ranks = scores.argsort(dim=1).argsort(dim=1)
        if kind == "one-vs-rest":
            positive = ranks == 0
        else:
            odd_one_out = torch.randint(0, 2, (count, 1), generator=stream) * (classes % 2)
            positive = ranks < classes // 2 + odd_one_out
    return positive.to(torch.float64) * 2 - 1


def draw_pairs(classes: int, count: int | None, *, seed: int) -> Tensor:
    """Class pairs ``(i, j)``, ``i < j``: all of them in order, or a seeded choice without repetition.

    Args:
        classes: ``P``, number of classes.
        count: how many pairs to draw; None, or at least as many as there are: all.
        seed: the same seed gives the same pairs.

    Returns:
        ``(pairs, 2)``, int64, on the CPU, sorted.

    >>> draw_pairs(3, None, seed=0).tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    pairs = torch.combinations(torch.arange(classes), r=2)
    if count is None or count >= len(pairs):
        return pairs
    chosen = torch.randperm(len(pairs), generator=_stream(seed, _PAIRS))[:count]
    return pairs[chosen.sort().values]


def given_or_drawn_directions(directions: int | Tensor, dimension: int, *, seed: int) -> Tensor:
    """Directions ``(T, N)``, float64, on the CPU: checked if given, drawn if a number is given.

    Raises:
        InputError: wrong type, shape or values, fewer than two.
    """
    if isinstance(directions, Tensor):
        if directions.ndim != 2 or directions.shape[1] != dimension or not directions.is_floating_point():
            raise InputError(
                f"directions must be floating-point of shape (T, {dimension}), found {directions.dtype} "
                f"of shape {tuple(directions.shape)}."
            )
        if not bool(directions.isfinite().all()):
            raise InputError("directions must be finite, found NaN or infinity.")
        count = len(directions)
    elif isinstance(directions, int) and not isinstance(directions, bool):
        count = directions
    else:
        raise InputError(f"directions must be an integer or a tensor, found {type(directions).__name__}.")
    if not 2 <= count <= MOST_DIRECTIONS:
        raise InputError(
            f"at least 2 directions are needed for a mean and its error, and at most {MOST_DIRECTIONS:,} are drawn; "
            f"found {count}. 200 are usual."
        )
    if isinstance(directions, Tensor):
        return directions.detach().cpu().to(torch.float64)
    if 8 * count * dimension > _KEPT_BYTES:
        return draw_directions(count, dimension, seed=seed)
    return _kept_directions(count, dimension, seed)


@lru_cache(maxsize=8)
def _kept_directions(count: int, dimension: int, seed: int) -> Tensor:
    """Directions of the last protocols, since a monitor draws the same ones at each measurement. Never written to."""
    with torch.inference_mode(mode=False):
        return draw_directions(count, dimension, seed=seed)


def given_or_drawn_dichotomies(
    dichotomies: Dichotomies | Tensor, shape: tuple[int, int], *, pairwise: bool, seed: int
) -> Tensor:
    """Signs ``(T, P)``, float64: checked if given, drawn if an ensemble is named (for pairs ``(T, 2)``).

    Raises:
        InputError: wrong shape or values, or no such ensemble.
    """
    if isinstance(dichotomies, Tensor):
        if tuple(dichotomies.shape) != shape:
            raise InputError(f"dichotomies must have shape (T, P) = {shape}, found {tuple(dichotomies.shape)}.")
        if not bool((dichotomies.abs() == 1).all()):
            raise InputError("dichotomies must hold +1 and -1 only, one sign per direction and class.")
        return dichotomies.detach().to(torch.float64)
    if not isinstance(dichotomies, str) or dichotomies not in get_args(Dichotomies):
        known = ", ".join(get_args(Dichotomies))
        raise InputError(f"dichotomies must be a tensor or one of {known}, found {dichotomies!r}.")
    return draw_dichotomies(shape[0], 2 if pairwise else shape[1], dichotomies, seed=seed)


def _stream(seed: int, kind: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(_SALT + seed * _STREAMS + kind)
