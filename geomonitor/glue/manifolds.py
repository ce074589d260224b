"""Manifold capacity and the effective geometry of class manifolds (GLUE), from features and labels.

Source: Chou, Kirsanov, Yang, Chung, ICLR 2026 (arXiv:2603.01879), appendix B.3; Chou, Le, Wang, Chung, ICML 2025
(arXiv:2503.18114), Algorithm 2 and appendix B.5; theory in Chou et al., bioRxiv 2024.02.26.582157.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal, get_args

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.glue.draws import (
    SEEDS,
    Dichotomies,
    draw_pairs,
    given_or_drawn_dichotomies,
    given_or_drawn_directions,
)
from geomonitor.glue.estimates import Estimates, estimate
from geomonitor.glue.joint import joint_scalars
from geomonitor.glue.pairwise import pairwise_scalars
from geomonitor.glue.points import Points, check_features, prepare_points
from geomonitor.glue.ranks import OneProcess, Ranks
from geomonitor.glue.result import EffectiveGeometry, Protocol, depends_on_rounding, effective_geometry
from geomonitor.glue.scalars import DirectionScalars
from geomonitor.glue.span import COARSER, ROUNDINGS, in_span, rounding_of

Mode = Literal["joint", "pairwise"]

DEFAULT_MEMORY_BYTES = 2**30


def manifold_geometry(
    features: Tensor,
    labels: Tensor,
    *,
    directions: int | Tensor = 200,
    dichotomies: Dichotomies | Tensor = "balanced",
    mode: Mode = "joint",
    pairs: int | None = None,
    seed: int = 0,
    ridge: float = 0.0,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ranks: Ranks | None = None,
) -> EffectiveGeometry:
    """Capacity, dimension, radius, utility and alignments of class manifolds.

    For each sampled direction ``t`` and dichotomy ``y`` the anchor points of the classes are the rows of ``S``
    (:mod:`geomonitor.glue.anchors`). With ``S0 = E[S]``, ``S1 = S - S0`` and the pseudo-inverse ``^+``::

        a = (S  t)^T (S S^T)^+            (S  t)
        b = (S1 t)^T (S1 S1^T)^+          (S1 t)
        c = (S1 t)^T (S0 S0^T + S1 S1^T)^+ (S1 t)

        capacity  = P / E[a]
        dimension = E[b] / P
        radius    = sqrt(E[c] / E[b - c])
        utility   = E[c] / E[a]

    and ``capacity = utility (1 + radius^-2) / dimension`` holds exactly. In the pairwise mode every measure is the mean
    over class pairs, each a problem with ``P = 2``; the identity then holds for each pair, not for the means. Pairs in
    which a measure is undefined are not in its mean.

    Alignments are means of cosines over ordered class pairs and directions: of centres (rows of ``S0``), of axes (rows
    of ``S1``), and of a centre with an axis; the absolute ones are means of absolute cosines.

    If many dual weights are optimal (identical points in two classes; a direction inside the cone of more points
    than dimensions) the smallest are taken, the limit of a vanishing ridge: capacity does not depend on that choice,
    the other measures do. On features of low rank that were rounded (float32, bfloat16) the choice follows the
    rounding; a ridge makes the measures well posed. It changes the dual weights, and so the anchors; ``a``, ``b``,
    ``c`` are the formulas above in these anchors, and the identity still holds. Directions in which no point is larger
    than the rounding of its dtype (with a ridge: of float32 at least) are left out, see :mod:`geomonitor.glue.span`.
    With a ridge all measures of features in half precision are NaN if directions as small as a few times the rounding
    decide them.

    Args:
        features: ``(Q, N)``, one point a row, any float dtype, any device; only their directions and relative sizes
            matter. Duplicates, zero points, ``Q > N`` and classes of one point are fine.
        labels: ``(Q,)``, integers.
        directions: how many to draw, or the directions themselves, ``(T, N)``.
        dichotomies: the ensemble to draw from, or signs ``(T, P)`` with classes in the order of sorted labels.
        mode: all classes in one problem, or pairs of classes.
        pairs: number of pairs to draw in the pairwise mode; None: all.
        seed: of the draws. The same seed, ``N`` and ``T`` give the same directions, whatever the classes.
        ridge: added to the diagonal of the Gram matrix of unit points, in the solver only: the dual weights minimise
            ``1/2 ||A x - t||^2 + ridge/2 ||x||^2``. 0 is the paper's definition; 1e-4 is a bias of at most 0.05
            standard errors on trained networks, 1e-3 of 0.4.
        memory_bytes: about how much memory the work may take beside the features and, in the joint mode, the Gram
            matrix of ``8 Q^2`` bytes.
        ranks: splits the work over processes; every one of them must call with the same arguments.

    Returns:
        the measures with standard errors over directions, and the scalars they come from.

    Raises:
        InputError: an argument of the wrong type, shape or value; fewer than two classes; NaN or infinite features.

    Warns:
        GeomonitorWarning: once, if a measure is undefined (NaN) or a direction did not converge (it is left out).

    Source: arXiv:2603.01879, appendix B.3; arXiv:2503.18114, Algorithm 2. The alignments there are absolute; the
    standard errors and the ridge are additions.

    >>> points = torch.eye(4, dtype=torch.float64)
    >>> g = manifold_geometry(points, torch.arange(4), directions=500, dichotomies="random")
    >>> round(float(g.capacity), 1)  # points in general position: 2
    2.0
    """
    _check_options(mode, pairs, seed, memory_bytes)
    ridge = _checked_ridge(ridge)
    features, class_of = check_features(features, labels)
    classes = int(class_of.max()) + 1
    t = given_or_drawn_directions(directions, features.shape[1], seed=seed)
    y = given_or_drawn_dichotomies(dichotomies, (len(t), classes), pairwise=mode == "pairwise", seed=seed)
    chosen = draw_pairs(classes, pairs, seed=seed) if mode == "pairwise" else None
    protocol = Protocol(
        mode,
        f"{len(features)} points of {classes} classes, labels {_digest(labels.sort().values)}",
        features.shape[1],
        f"{len(t)} of seed {seed}" if isinstance(directions, int) else f"{len(t)} given, {_digest(directions)}",
        f"{dichotomies} of seed {seed}" if isinstance(dichotomies, str) else f"given, {_digest(dichotomies)}",
        "none" if chosen is None else _digest(chosen),
        ridge,
    )
    ranks = OneProcess() if ranks is None else ranks
    with torch.no_grad():
        points = prepare_points(features, class_of)
        t, y = t.to(features.device), y.to(features.device)
        if chosen is not None:
            y = y.expand(len(chosen), -1, -1) if y.shape[1] == 2 else y.T[chosen.to(y.device)].mT
            chosen = chosen.to(features.device)

        def measured(points: Points, t: Tensor) -> tuple[DirectionScalars, Estimates]:
            if chosen is None:
                found = joint_scalars(points, t, signs=y, ridge=ridge, ranks=ranks, memory_bytes=memory_bytes)
            else:
                found = pairwise_scalars(
                    points, t, signs=y, pairs=chosen, ridge=ridge, ranks=ranks, memory_bytes=memory_bytes
                )
            return found, estimate(found, classes if chosen is None else 2)

        rounding = max(rounding_of(features), ROUNDINGS[torch.float32] if ridge else 0.0)
        inside = in_span(points, t, rounding)
        scalars, estimates = measured(*inside)
        hidden = False
        if ridge and rounding > ROUNDINGS[torch.float32]:
            coarser = in_span(points, t, COARSER * rounding)
            hidden = len(coarser[1].T) < len(inside[1].T) and depends_on_rounding(estimates, measured(*coarser)[1])
        return effective_geometry(scalars, estimates, protocol, hidden=hidden)


def _check_options(mode: str, pairs: object, seed: object, memory_bytes: object) -> None:
    if not isinstance(mode, str) or mode not in get_args(Mode):
        raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, found {mode!r}.")
    if pairs is not None and mode != "pairwise":
        raise InputError(f"pairs are drawn in mode 'pairwise' only, found pairs={pairs} in mode {mode!r}.")
    for name, value, least in (
        ("pairs", 1 if pairs is None else pairs, 1),
        ("memory_bytes", memory_bytes, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be an integer >= {least}, found {value!r}.")
    SEEDS.number("seed", seed)


def _checked_ridge(ridge: object) -> float:
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 <= ridge < math.inf:
        raise InputError(f"ridge must be a finite number >= 0, found {ridge!r}.")
    return float(ridge)


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    return hashlib.blake2b(data.view(torch.uint8).numpy().tobytes(), digest_size=8).hexdigest()
