"""Numbers of fibers: how much their members differ at equal loss, what another network makes of them, real neighbours.

Standard errors are bootstraps over representatives; those of a change draw the same representatives before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.explain.layer import ToFeatures, features_of

if TYPE_CHECKING:
    from geomonitor.explain.sampling import FiberSamples

DRAWS = 400
"""Bootstrap draws: their standard deviation is then known to 4 %."""
SEED = 0
SMALLEST_LOSS = 1e-12
"""A relative loss of 0 (an identity layer in float32) has no logarithm: below this it counts as this."""


class Estimate(NamedTuple):
    """A number and its standard error over representatives."""

    value: float
    standard_error: float = math.nan
    reason: str = ""
    """why it is NaN"""


class Nearest(NamedTuple):
    """The real neighbour of each representative."""

    place: Tensor
    """``(R,)``, into the pool"""
    squared_distance: Tensor
    """``(R,)``"""


def pair_scale(features: Tensor) -> float:
    r"""Mean squared distance between two different points, :math:`2 n / (n - 1)` times the total variance; NaN for one.

    Args:
        features: ``(n, N)``.

    >>> pair_scale(torch.tensor([[0.0], [2.0], [4.0]]))  # pairs: 4, 4 and 16
    8.0
    """
    count = len(features)
    if count < 2:
        return math.nan
    centred = features.double() - features.double().mean(dim=0)
    return float(2 * centred.square().sum() / (count - 1))


def nearest(features: Tensor, pool: Tensor, *, excluded: Tensor | None = None) -> Nearest:
    """The point of a pool whose features are nearest.

    Args:
        features: of the representatives, ``(R, N)``.
        pool: ``(Q, N)``.
        excluded: ``(R,)``, place of each representative itself in the pool.

    >>> nearest(torch.tensor([[0.0], [5.0]]), torch.tensor([[0.0], [1.0], [5.0]]), excluded=torch.tensor([0, 2]))
    Nearest(place=tensor([1, 1]), squared_distance=tensor([ 1., 16.], dtype=torch.float64))
    """
    squared = torch.cdist(features.double(), pool.double()).square()
    if excluded is not None:
        squared[torch.arange(len(features)), excluded] = math.inf
    found = squared.min(dim=1)
    return Nearest(found.indices, found.values)


def pair_distances(samples: Tensor, accepted: Tensor | None = None) -> Tensor:
    """Mean distance between the accepted members of each fiber, ``(R,)``: root mean square of their coordinates.

    Args:
        samples: ``(R, K, ...)``.
        accepted: ``(R, K)``; by default all that are finite. A fiber of fewer than two is NaN.

    >>> pair_distances(torch.tensor([[[0.0, 0.0], [3.0, 3.0]]])).round(decimals=6).tolist()
    [3.0]
    """
    flat = samples.double().flatten(2)
    finite = torch.isfinite(flat).all(dim=2)
    kept = finite if accepted is None else finite & accepted
    flat = torch.where(kept[..., None], flat, 0.0)
    apart = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / flat.shape[2] ** 0.5
    both = kept[:, :, None] & kept[:, None, :] & ~torch.eye(flat.shape[1], dtype=torch.bool)
    count = both.sum(dim=(1, 2))
    return torch.where(count > 0, (apart * both).sum(dim=(1, 2)) / count.clamp_min(1), math.nan)


class Ladder(NamedTuple):
    """Loss and diversity of each representative at each strength, ``(strengths, R)``."""

    losses: Tensor
    """median over the members"""
    diversities: Tensor

    @classmethod
    def of(cls, fibers: Sequence[FiberSamples], accepted: Sequence[Tensor] | None = None) -> Ladder:
        """Of fibers of the same representatives at several strengths.

        Raises:
            InputError: none, or of other representatives.
        """
        if not fibers or any(not torch.equal(f.representative_ids, fibers[0].representative_ids) for f in fibers):
            raise InputError("expected fibers of the same representatives at one or more strengths")
        masks = accepted or [torch.ones_like(f.relative_loss, dtype=torch.bool) for f in fibers]
        return cls(
            torch.stack([f.relative_loss.double().nanmedian(dim=1).values for f in fibers]),
            torch.stack([pair_distances(f.samples, mask & _finite(f)) for f, mask in zip(fibers, masks, strict=True)]),
        )

    def range(self) -> tuple[float, float]:
        """Smallest and largest loss that a strength reaches, as the median over representatives; NaN if none does."""
        each = self.losses.nanmedian(dim=1).values
        each = each[~each.isnan()]
        return (float(each.min()), float(each.max())) if len(each) else (math.nan, math.nan)

    def at(self, loss: float, chosen: Tensor | None = None) -> float:
        """Diversity at a loss: means over representatives, interpolated in the logarithm of the loss."""
        pick = slice(None) if chosen is None else chosen
        where = self.losses[:, pick].nanmedian(dim=1).values.clamp_min(SMALLEST_LOSS).log()
        height = self.diversities[:, pick].nanmean(dim=1)
        order = where.argsort()[: int((~where.isnan()).sum())]  # a strength without a finite member is last
        return _interpolated(math.log(max(loss, SMALLEST_LOSS)), where[order], height[order])


def diversity_at(fibers: Sequence[FiberSamples], loss: float, accepted: Sequence[Tensor] | None = None) -> Estimate:
    """Mean distance between members of one fiber (root mean square a coordinate) at a relative loss.

    Args:
        fibers: at several strengths.
        loss: at which members are compared.
        accepted: masks ``(R, K)`` of the members that count, one a strength.

    Returns:
        NaN with the reason if no strength reaches the loss.

    Raises:
        InputError: fibers of different representatives.
    """
    ladder = Ladder.of(fibers, accepted)
    return _covered(loss, ladder) or bootstrapped(lambda chosen: ladder.at(loss, chosen), ladder.losses.shape[1])


def diversity_change(before: Ladder, after: Ladder, loss: float) -> Estimate:
    """Diversity after minus before at a loss; the bootstrap draws the same representatives on both sides."""
    return _covered(loss, before, after) or bootstrapped(
        lambda chosen: after.at(loss, chosen) - before.at(loss, chosen), before.losses.shape[1]
    )


def comparable_loss(aim: float, before: Ladder, after: Ladder) -> tuple[float, str]:
    """The loss at which two ladders are compared: the aim, moved into the range that both cover.

    Returns:
        The loss and a note if it was moved; NaN and the reason if the ranges do not meet.
    """
    lows, highs = zip(before.range(), after.range(), strict=True)
    low, high = max(lows), min(highs)
    if not low <= high or math.isnan(sum(highs)):
        return math.nan, (
            f"the strengths reach losses of {_span(before)} before and {_span(after)} after, which do not "
            "overlap: give weaker and stronger ones"
        )
    moved = min(max(aim, low), high)
    return moved, "" if moved == aim else f"moved from {aim:.2g}, which not both ladders reach"


def crossing(fibers: FiberSamples, other: ToFeatures, targets: Tensor, scale: float) -> Tensor:
    """Relative loss ``(R, K)`` of members in another network; those that are not finite are NaN.

    Args:
        fibers: of one network.
        other: features of the other.
        targets: features ``(R, N)`` of the representatives in the other.
        scale: mean squared distance between points in the other.
    """
    return losses_to(targets, member_features(fibers, other), scale)


def member_features(fibers: FiberSamples, network: ToFeatures) -> Tensor:
    """Features ``(R, K, N)`` of members in any network; NaN for one that is not finite here or in its own network."""
    finite = _finite(fibers)
    given = torch.where(finite.flatten()[:, None], fibers.samples.flatten(0, 1).flatten(1), 0.0)
    found = features_of(network, given.view(-1, *fibers.samples.shape[2:])).view(*finite.shape, -1)
    return torch.where((finite & torch.isfinite(found).all(dim=2))[..., None], found, math.nan)


def losses_to(targets: Tensor, members: Tensor, scale: float) -> Tensor:
    """Relative loss ``(R, K)`` of features ``(R, K, N)`` to targets ``(R, N)``."""
    return (members.double() - targets.double().cpu()[:, None]).square().sum(dim=2) / scale


def forgotten(own: Tensor, crossed: Tensor) -> Estimate:
    """How many times larger the loss of the members is in the other network than in their own (ratio of medians).

    Args:
        own: relative losses ``(R, K)`` in their own network.
        crossed: in the other.
    """

    def ratio(chosen: Tensor) -> float:
        below = max(float(own[chosen].nanmedian()), SMALLEST_LOSS)
        return float(crossed[chosen].nanmedian()) / below

    return bootstrapped(ratio, len(own))


def median_loss(losses: Tensor) -> Estimate:
    """Median relative loss of members ``(R, K)``."""
    return bootstrapped(lambda chosen: float(losses[chosen].nanmedian()), len(losses))


def kernel_distance(members: Tensor, real: Tensor) -> float:
    """Unbiased squared kernel distance (KID, Binkowski et al. 2018) of two sets of features ``(n, N)``, ``(m, N)``.

    The cubic kernel ``(x y / N + 1)^3`` of features divided by the root mean square of the real ones.
    """
    size = float(real.double().square().mean().sqrt()) or 1.0
    x, y = members.double() / size, real.double() / size

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def real_neighbours(features: Tensor, pool: Tensor, places: Tensor, loss: float, scale: float) -> Estimate:
    """Mean number of real points in the fiber of a representative, within a relative loss.

    Args:
        features: of the representatives, ``(R, N)``.
        pool: of all points, ``(Q, N)``.
        places: of the representatives in the pool, which are not counted.
        loss: at which a point belongs to the fiber.
        scale: mean squared distance between points.
    """
    near = torch.cdist(features.double(), pool.double()).square() <= loss * scale
    near[torch.arange(len(features)), places] = False
    counts = near.sum(dim=1).double()
    return bootstrapped(lambda chosen: float(counts[chosen].mean()), len(counts))


def bootstrapped(statistic: Callable[[Tensor], float], count: int) -> Estimate:
    """A statistic of all representatives, and its standard deviation over draws of them with replacement.

    Args:
        statistic: of places ``(n,)`` among the representatives.
        count: representatives; of one the error is NaN.
    """
    value = statistic(torch.arange(count))
    if count < 2 or not math.isfinite(value):
        return Estimate(value)
    stream = torch.Generator().manual_seed(SEED)
    drawn = [statistic(torch.randint(count, (count,), generator=stream)) for _ in range(DRAWS)]
    return Estimate(value, float(torch.tensor(drawn, dtype=torch.float64).std()))


def _finite(fibers: FiberSamples) -> Tensor:
    """Which members ``(R, K)`` are finite, and have finite features in their own network."""
    return torch.isfinite(fibers.samples.flatten(2)).all(dim=2) & torch.isfinite(fibers.relative_loss)


def _covered(loss: float, *ladders: Ladder) -> Estimate | None:
    for ladder in ladders:
        low, high = ladder.range()
        if not low <= loss <= high:
            return Estimate(math.nan, reason=f"the strengths reach losses of {_span(ladder)}, and not {loss:.2g}")
    return None


def _span(ladder: Ladder) -> str:
    low, high = ladder.range()
    return "nothing finite" if math.isnan(low) else f"{low:.2g} to {high:.2g}"


def _interpolated(at: float, where: Tensor, height: Tensor) -> float:
    """Linear between the places, which rise, and constant beyond the ends."""
    right = int(torch.searchsorted(where, torch.tensor(at, dtype=where.dtype)))
    if right == 0 or right == len(where):
        return float(height[min(right, len(where) - 1)])
    left = right - 1
    share = (at - float(where[left])) / (float(where[right]) - float(where[left]))
    return float(height[left] + share * (height[right] - height[left]))
