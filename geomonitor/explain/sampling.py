r"""Natural members of a fiber: inputs that a layer maps to the features of a representative, drawn from a prior.

The fiber of a layer :math:`\phi` at x is :math:`\{x' : \phi(x') = \phi(x)\}`. The reverse process of the prior is run
from noise, and a control moves its state at each step until the clean estimate has the features of x.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError, MeasurementError
from geomonitor.explain.checks import checked_ids, checked_inputs, checked_rows, checked_scale
from geomonitor.explain.control import Control, Optimiser, distance, gradient, normalised
from geomonitor.explain.fiber_markers import pair_scale
from geomonitor.explain.layer import ToFeatures, device_of_prior, quiet_prior
from geomonitor.explain.priors import Prior


class FiberSamples(NamedTuple):
    """Members of the fibers of R representatives, K of each."""

    samples: Tensor
    """``(R, K, *shape)``, float32 on the CPU, in the prior's space"""
    relative_loss: Tensor
    """``(R, K)``: squared distance of the features to the representative's, divided by the mean over pairs of points"""
    representative_ids: Tensor
    """``(R,)``"""
    strength: float


class _Plan(NamedTuple):
    """Settings of one run of the sampler."""

    strength: float
    steps: int
    inner: int
    rate: float
    eta: float
    guided_below: float
    optimiser: str
    per_step: bool


def sample_fibers(
    features: ToFeatures,
    prior: Prior,
    inputs: Tensor,
    *,
    ids: Tensor | None = None,
    per_input: int = 8,
    strength: float = 3.0,
    steps: int = 50,
    inner: int = 3,
    rate: float = 0.01,
    eta: float = 0.5,
    guided_below: float = 0.9,
    optimiser: Optimiser = "normalised",
    target: Literal["static", "per_step"] = "static",
    scale: float | None = None,
    seed: int = 0,
    batch: int = 48,
    progress: Callable[[int], object] | None = None,
) -> FiberSamples:
    """Draw members of the fibers of representatives.

    Equal seed, device, batch and versions give equal bits; the noise of a member depends on the seed, the id and its
    number alone, so another ``batch`` changes no more than rounding. If memory runs out, ``batch`` is halved.

    Args:
        features: from inputs ``(B, *prior.shape)`` to features ``(B, N)``, see
            :func:`geomonitor.explain.layer.layer_features`.
        prior: what is plausible.
        inputs: representatives ``(R, *prior.shape)``, in the prior's space.
        ids: ``(R,)`` whole numbers that name the representatives, for their noise; by default 0 .. R-1.
        per_input: members K of each fiber.
        strength: of the control, in states; 0: the prior alone. With ``optimiser="gradient"`` the length of a step.
        steps: T of the reverse process.
        inner: steps N of the control at each of them.
        rate: root mean square a coordinate of one step of the control, at the first of the T; falls linearly.
        eta: share of fresh noise; 0: none, 1: ancestral sampling.
        guided_below: the control acts at times ``sigma / (alpha + sigma)`` up to this.
        optimiser: ``"normalised"``; ``"adam"``, as in the paper, which is biased; ``"gradient"``: plain guidance by
            one gradient a step (Chung et al. 2023), a baseline.
        target: ``"per_step"``: the features of the representative noised and denoised at the same time.
        scale: divides the loss; by default the mean squared distance between the features of the representatives.
        seed: of all noise.
        batch: members that are drawn together.
        progress: called with the number of members that have just been finished.

    Returns:
        The members; those that are not finite, or whose features are not, are in it with a loss of NaN.

    Raises:
        InputError: an option out of range; inputs that are no floating tensor of the prior's shape (tokens have no
            continuous prior), or not finite; a prior that returns another shape, or no finite member.
        MeasurementError: the features of a representative, or of all members, are not finite; all are equal; no
            gradient comes from them.

    Source: Rousselot, Wendebourg and Köthe 2026, arXiv:2603.21782; Pandey et al. 2025, arXiv:2502.03686.

    >>> from geomonitor.explain.priors import FlowPrior
    >>> prior = FlowPrior(lambda x, t: 0.5 * x, (2,), predicts="x0")
    >>> fibers = sample_fibers(lambda x: x[:, :1], prior, torch.rand(3, 2), per_input=2, steps=4)
    >>> fibers.samples.shape, fibers.relative_loss.shape
    (torch.Size([3, 2, 2]), torch.Size([3, 2]))
    """
    features = _options.function("features", features, "inputs")
    _options.instance("prior", prior, Prior, "a FlowPrior, DiffusionPrior, DiffusersPrior or of the Prior protocol")
    inputs = checked_inputs(inputs, prior)
    names = checked_ids(ids, len(inputs))
    plan = _Plan(
        float(_options.NOT_NEGATIVE.number("strength", strength)),
        _options.whole("steps", steps),
        _options.whole("inner", inner),
        float(_options.POSITIVE.number("rate", rate)),
        float(_options.Range(0, 1, ends="[]").number("eta", eta)),
        float(_options.Range(0, 1, ends="[]").number("guided_below", guided_below)),
        _options.one_of("optimiser", optimiser, get_args(Optimiser)),
        _options.one_of("target", target, ("static", "per_step")) == "per_step",
    )
    per_input, batch = _options.whole("per_input", per_input), _options.whole("batch", batch)
    seed = _options.whole("seed", seed, least=0)
    with torch.no_grad(), quiet_prior(prior):
        aims = features(inputs).detach()
        checked_rows(aims, len(inputs))
        size = checked_scale(pair_scale(aims)) if scale is None else float(_options.POSITIVE.number("scale", scale))
        members = [(row, number) for row in range(len(inputs)) for number in range(per_input)]
        samples, losses, moved = [], [], False
        while members:
            part, members = members[:batch], members[batch:]
            rows = torch.tensor([row for row, _ in part])
            noise = [_generator(seed, names[row], number) for row, number in part]
            try:
                drawn, pulled = _draw(features, prior, inputs[rows], aims[rows.to(aims.device)], noise, plan)
            except torch.cuda.OutOfMemoryError:
                if batch == 1:
                    raise
                members, batch = part + members, batch // 2
                continue
            moved = moved or pulled
            given = torch.nan_to_num(drawn, nan=0.0, posinf=0.0, neginf=0.0)  # a model may check its inputs
            loss = (features(given) - aims[rows.to(aims.device)]).double().square().sum(dim=1).cpu() / size
            drawn = drawn.float().cpu()
            finite = torch.isfinite(drawn.flatten(1)).all(dim=1) & torch.isfinite(loss)
            samples.append(drawn)
            losses.append(torch.where(finite, loss, torch.nan))
            if progress is not None:
                progress(len(part))
    found = FiberSamples(
        torch.cat(samples).view(len(inputs), per_input, *prior.shape),
        torch.cat(losses).view(len(inputs), per_input),
        torch.tensor(names),
        plan.strength,
    )
    _refuse_empty(found, moved=moved)
    return found


def _refuse_empty(found: FiberSamples, *, moved: bool) -> None:
    """Refuse a drawing without a finite member, or in which the layer guided none."""
    count = found.relative_loss.numel()
    if not bool(torch.isfinite(found.samples.flatten(2)).all(dim=2).any()):
        raise InputError(
            f"prior.x0 gives no finite estimate (NaN or infinite) for any of {count} members: check the prior's weights"
        )
    if bool(found.relative_loss.isnan().all()):
        raise MeasurementError(
            f"the features of all {count} members are not finite (NaN or infinite), although those of the "
            "representatives are: the layer cannot take what the prior gives; check the range of its data"
        )
    if not moved:
        raise MeasurementError(
            "the gradient from the features to the inputs is zero at every step: the layer's activations are constant "
            "or quantised; take an earlier layer"
        )


def _draw(  # noqa: PLR0917 - private: all of them at each call
    features: ToFeatures, prior: Prior, inputs: Tensor, aims: Tensor, noise: list[torch.Generator], plan: _Plan
) -> tuple[Tensor, bool]:
    """One batch through the reverse process: ``(B, *shape)``, and whether the layer guided it as it was asked to."""
    times = prior.times(plan.steps)
    place = device_of_prior(prior) or aims.device

    def fresh() -> Tensor:
        return torch.stack([torch.randn(prior.shape, generator=each) for each in noise]).to(place)

    inputs, aim = inputs.to(place), aims
    x = prior.sigma(times[0]) * fresh()
    pulled, ever_guided = False, False
    for number, (t, r) in enumerate(pairwise(times)):
        a, s = prior.alpha(t), prior.sigma(t)
        guided = plan.strength > 0 and s / (a + s) <= plan.guided_below
        if guided and plan.per_step:
            aim = features(_clean(prior, a * inputs + s * fresh(), t)[1])
        push, ever_guided = torch.zeros_like(x), ever_guided or guided
        if guided and plan.optimiser == "gradient":
            push = _pull(features, prior, x, torch.zeros_like(x), 1.0, t, aim)
            length = push[0].numel() ** 0.5  # a step of the length of strength, not of this root mean square
            push = plan.strength * normalised(push) / length
        elif guided:
            control = Control(x, plan.optimiser)
            rate = plan.rate * (1 - number / (len(times) - 1))  # a prior may have fewer times than asked for
            for _ in range(plan.inner):
                g = _pull(features, prior, x, control.value, plan.strength, t, aim)
                pulled = pulled or bool(g.any())
                control.step(g, rate)
            x = x + plan.strength * control.value
        raw, clean = _clean(prior, x, t)
        x = _step(prior, x, raw, clean, (t, r), plan.eta, fresh) - push
        x = clean if r == 0 else x
        pulled = pulled or bool(push.any())
    return x, pulled or not ever_guided


def _clean(prior: Prior, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """The estimate of the clean input as the network gives it, and within the range of the data."""
    raw = prior.x0(x, t)
    if not isinstance(raw, Tensor) or raw.shape != x.shape:
        found = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        raise InputError(f"prior.x0 must give a tensor of shape {tuple(x.shape)}, as its input; got {found}")
    return raw, raw.clamp(prior.low, prior.high)


def _pull(  # noqa: PLR0917
    features: ToFeatures, prior: Prior, x: Tensor, control: Tensor, strength: float, t: float, aim: Tensor
) -> Tensor:
    """Gradient of the distance of the features to the aim by the control."""
    with torch.enable_grad():
        by = control.detach().requires_grad_()
        return gradient(distance(_clean(prior, x + strength * by, t)[1], features, aim), by)


def _step(  # noqa: PLR0917
    prior: Prior,
    x: Tensor,
    raw: Tensor,
    clean: Tensor,
    between: tuple[float, float],
    eta: float,
    fresh: Callable[[], Tensor],
) -> Tensor:
    """From time t to r: the clean estimate, the noise that the state has by the unclipped one, and fresh noise."""
    t, r = between
    a, s, a_r, s_r = prior.alpha(t), prior.sigma(t), prior.alpha(r), prior.sigma(r)
    e = (x - a * raw) / s
    forward = max(s**2 - (a / a_r) ** 2 * s_r**2, 0.0)  # variance of x_t given x_r; negative by rounding alone
    new = eta * (s_r / s) * math.sqrt(forward)
    return a_r * clean + math.sqrt(max(s_r**2 - new**2, 0.0)) * e + (new * fresh() if new else 0.0)


def _generator(seed: int, point: int, number: int) -> torch.Generator:
    """The noise of one member: of its own, whatever it is drawn together with."""
    digest = hashlib.sha256(f"geomonitor fiber {seed} {point} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
