"""Fibers of one layer before and after: the ladder of strengths, the loss at which both are compared, the markers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.explain.checks import checked_inputs, checked_rows, checked_scale, checked_strengths
from geomonitor.explain.fiber_markers import (
    SMALLEST_LOSS,
    Estimate,
    Ladder,
    Nearest,
    comparable_loss,
    diversity_at,
    diversity_change,
    forgotten,
    kernel_distance,
    losses_to,
    median_loss,
    member_features,
    nearest,
    pair_scale,
    real_neighbours,
)
from geomonitor.explain.layer import ToFeatures, features_of
from geomonitor.explain.priors import Prior
from geomonitor.explain.sampling import FiberSamples, sample_fibers

STRENGTHS = (1.0, 3.0, 10.0, 30.0)
AIM = 0.1
"""Members are compared at this share of the loss of the real neighbour before: clearly nearer than any real input."""
REFUSED_ABOVE = 0.99
"""A member is no natural input if its features before are farther from all real ones than this share of the real ones
are from one another."""


class Side(NamedTuple):
    """One of the two networks."""

    fibers: tuple[FiberSamples, ...]
    """one a strength"""
    neighbours: Nearest
    """of the representatives, in this network"""
    scale: float
    refused: tuple[Tensor, ...]
    """masks ``(R, K)``, one a strength: members that are no natural inputs in the features before"""

    @property
    def neighbour_losses(self) -> Tensor:
        """Relative loss of the real neighbour, ``(R,)``."""
        return self.neighbours.squared_distance / self.scale


class Comparison(NamedTuple):
    """Fibers before and after, at equal loss."""

    representatives: Tensor
    """``(R, *shape)``"""
    pool: Tensor
    """``(Q, *shape)``: all points of the probe set"""
    before: Side
    after: Side
    loss: float
    """relative loss at which members are compared"""
    note: str
    """why the loss is another one than aimed at, or there is none"""
    markers: dict[str, Estimate]

    @property
    def sentence(self) -> str:
        """The result in one line."""
        before, after = self.markers["fiber_diversity_before"], self.markers["fiber_diversity_after"]
        change = self.markers["fiber_diversity_change"]
        if math.isnan(change.value):
            return f"The fibers cannot be compared: {self.note or change.reason}."
        verdict = "the layer has become blind to more"
        if math.isnan(change.standard_error):
            verdict = "of one input, so with no error"
        elif change.value < -SIGNIFICANT * change.standard_error:
            verdict = "the layer distinguishes more"
        elif not change.value > SIGNIFICANT * change.standard_error:
            verdict = "no change beyond the error"
        return (
            f"At the same features (relative loss {self.loss:.2g}) inputs differ by {_shown(after)} after, "
            f"{_shown(before)} before: {verdict}."
        )

    def shown(self, side: Side) -> FiberSamples:
        """The fibers whose loss is nearest to the compared one; the strongest if there is none."""
        return side.fibers[_rung(side.fibers, self.loss)]

    def refused(self, side: Side) -> Tensor:
        """Which of the members that are shown are no natural inputs, ``(R, K)``."""
        return side.refused[_rung(side.fibers, self.loss)]


SIGNIFICANT = 2.0
"""Standard errors that a change must exceed."""


def compare_fibers(
    before: ToFeatures,
    after: ToFeatures,
    prior: Prior,
    pool: Tensor,
    places: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    per_input: int = 8,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    **settings: Any,
) -> Comparison:
    """Sample the fibers of the same representatives with the same noise in two networks, and compare them.

    Args:
        before: features of the earlier network.
        after: features of the later network.
        prior: what is plausible.
        pool: points of the probe set ``(Q, *prior.shape)``, in the prior's space.
        places: ``(R,)`` of the representatives in the pool.
        strengths: of the guidance; the diversity is interpolated between them.
        per_input: members of each fiber.
        seed: of the noise.
        progress: called with the number of members that were finished.
        settings: more of :func:`geomonitor.explain.sampling.sample_fibers`.

    Returns:
        Fibers and markers: ``fiber_diversity_before``, ``_after`` and ``_change``; the same of accepted members
        (``fiber_diversity_natural_...``); ``fiber_loss_...``, ``fiber_forgotten``, ``fiber_fidelity_...`` and
        ``fiber_real_neighbours_...``.

    Raises:
        InputError: a pool of another shape than the prior's, places outside of it, fewer than two members.
        MeasurementError: see :func:`geomonitor.explain.sampling.sample_fibers`.
    """
    pool = checked_inputs(pool, prior)
    _options.instance("places", places, Tensor, "a tensor (R,) of places in the pool")
    if places.ndim != 1 or not len(places) or places.is_floating_point() or not bool(
        ((places >= 0) & (places < len(pool))).all()
    ):  # fmt: skip
        raise InputError(f"places must be whole numbers below {len(pool)}, one a representative; got {places!r}")
    per_input, ladder = _options.whole("per_input", per_input, least=2), checked_strengths(strengths)
    inputs, sides, features, seen = pool[places], [], [], []
    for name, network in (("before", before), ("after", after)):
        points = features_of(network, pool)
        checked_rows(points, len(pool), f"points {name}")
        scale = checked_scale(pair_scale(points), f"points {name}")
        fibers = tuple(
            sample_fibers(
                network, prior, inputs, ids=places, per_input=per_input, strength=strength, scale=scale, seed=seed,
                progress=progress, **settings,
            )
            for strength in ladder
        )  # fmt: skip
        features.append(points)
        seen.append([member_features(each, before) for each in fibers])
        sides.append(Side(fibers, nearest(points[places], points, excluded=places), scale, ()))
    limit = _natural_distance(features[0])
    sides = [
        side._replace(refused=tuple(_refused(members, features[0], limit) for members in by_strength))
        for side, by_strength in zip(sides, seen, strict=True)
    ]
    ladders = [Ladder.of(side.fibers) for side in sides]
    loss, note = comparable_loss(AIM * float(sides[0].neighbour_losses.median()), *ladders)
    comparison = Comparison(inputs, pool, sides[0], sides[1], loss, note, {})
    return comparison._replace(markers=_markers(comparison, features, seen, places))


def _markers(
    found: Comparison, features: list[Tensor], seen: list[list[Tensor]], places: Tensor
) -> dict[str, Estimate]:
    """All markers, from the features of the points on both sides and of the members in the network before."""
    markers: dict[str, Estimate] = {}
    sides = {"before": found.before, "after": found.after}
    ladders = {name: Ladder.of(side.fibers) for name, side in sides.items()}
    unknown = Estimate(math.nan, reason=found.note)
    known = not math.isnan(found.loss)
    shown_in_before = {}
    for number, (name, side) in enumerate(sides.items()):
        own = features[number]
        rung = _rung(side.fibers, found.loss)
        shown_in_before[name] = seen[number][rung]
        accepted = [~mask for mask in side.refused]
        markers |= {
            f"fiber_diversity_{name}": diversity_at(side.fibers, found.loss) if known else unknown,
            f"fiber_diversity_natural_{name}": diversity_at(side.fibers, found.loss, accepted) if known else unknown,
            f"fiber_loss_{name}": median_loss(side.fibers[rung].relative_loss),
            f"fiber_refused_{name}": Estimate(float(side.refused[rung].double().mean())),
            f"fiber_fidelity_{name}": Estimate(_fidelity(shown_in_before[name], features[0])),
            f"fiber_real_neighbours_{name}": (
                real_neighbours(own[places], own, places, found.loss, side.scale) if known else unknown
            ),
        }
    markers["fiber_diversity_change"] = (
        diversity_change(ladders["before"], ladders["after"], found.loss) if known else unknown
    )
    crossed = losses_to(features[0][places], shown_in_before["after"], found.before.scale)
    markers["fiber_loss_crossed"] = median_loss(crossed)
    markers["fiber_forgotten"] = forgotten(found.shown(found.after).relative_loss, crossed)
    return markers


def _natural_distance(points: Tensor) -> float:
    """How far almost all real points are from the next real one, at most, in features."""
    own = nearest(points, points, excluded=torch.arange(len(points)))
    return float(own.squared_distance.quantile(REFUSED_ABOVE))


def _refused(members: Tensor, points: Tensor, limit: float) -> Tensor:
    """Which of the members ``(R, K, N)`` are not near a real point; those that are not finite are near none."""
    near = nearest(members.flatten(0, 1), points).squared_distance <= limit
    return ~near.view(members.shape[:2])


def _fidelity(members: Tensor, points: Tensor) -> float:
    flat = members.flatten(0, 1)
    finite = flat[torch.isfinite(flat).all(dim=1)]
    return kernel_distance(finite, points) if len(finite) > 1 else math.nan


def _rung(fibers: Sequence[FiberSamples], loss: float) -> int:
    """The strength whose median loss is nearest to a loss in logarithms; the last one if the loss is NaN."""
    if math.isnan(loss):
        return len(fibers) - 1
    medians = torch.stack([each.relative_loss.nanmedian() for each in fibers]).double().clamp_min(SMALLEST_LOSS)
    return int((medians.log() - math.log(max(loss, SMALLEST_LOSS))).abs().nan_to_num(math.inf).argmin())


def _shown(estimate: Estimate) -> str:
    if math.isnan(estimate.standard_error):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ± {estimate.standard_error:.3f}"
