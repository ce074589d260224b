"""What a change of a marker is called and means, for a person; and what to do about what changed before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType

from geomonitor.alarms.verdict import Verdict
from geomonitor.markers import MARKERS

PAPER = "Chou et al. 2026, arXiv:2603.01879"
CHECK = "Check what changed just before: data, labels, augmentation, weight decay, learning rate, resume."
BY_MEANING = (
    *("dimension", "numerical_rank", "rankme", "effective_rank", "participation_ratio"),
    *("participation_ratio_per_class", "utility", "capacity", "mean_norm", "cdnv", "accuracy"),
)
"""Markers by how much their decline means for new classes, and how well it is understood: the first one that declines
is what a status begins with, not the one of the most standard errors."""
_REMEDIES = MappingProxyType(
    {
        "learning_rate": "restore the learning rate, or continue from a checkpoint before the change",
        "weight_decay": "restore the weight decay: strong decay removes features that the training classes do not need",
        "gradient_norm": "clip gradients, and check the batches of that time",
        "resumed": "compare the checkpoint with what was loaded: frozen or new layers, optimiser state, data order",
    }
)
_DIRECTIONS = "fewer directions carry signal"
_MEANINGS = MappingProxyType(
    {
        ("dimension", "lower"): "the manifolds of the classes have fewer dimensions",
        ("utility", "lower"): "within-class variation accounts for less of what capacity costs",
        ("capacity", "lower"): "the training classes are harder to separate",
        ("numerical_rank", "lower"): _DIRECTIONS,
        ("participation_ratio", "lower"): _DIRECTIONS,
        ("effective_rank", "lower"): _DIRECTIONS,
        ("rankme", "lower"): _DIRECTIONS,
        ("participation_ratio_per_class", "lower"): _DIRECTIONS + " within a class",
        ("cdnv", "higher"): "classes are wider in units of the distances between them",
        ("mean_norm", "lower"): "feature vectors are shorter",
        ("accuracy", "lower"): "fewer points of the probe set are classified correctly",
    }
)
"""What the decline of a marker means, by marker and direction."""
_LOSSES = MappingProxyType(
    {
        ("dimension", "lower"): "has lost {} of its dimension",
        ("utility", "lower"): "has lost {} of its utility",
        ("capacity", "lower"): "has lost {} of its capacity to separate the training classes",
        ("numerical_rank", "lower"): "has lost {} of the directions that carry signal",
        ("participation_ratio", "lower"): "has lost {} of its effective directions (participation ratio)",
        ("effective_rank", "lower"): "has lost {} of its effective directions (effective rank)",
        ("rankme", "lower"): "has lost {} of its effective directions (RankMe)",
        ("participation_ratio_per_class", "lower"): "has lost {} of the directions within its classes",
        ("cdnv", "higher"): "has classes that are {} wider against the distances between them",
        ("mean_norm", "lower"): "has feature vectors that are {} shorter",
        ("accuracy", "lower"): "has lost {} of its accuracy on the probe set",
    }
)
"""The same as a predicate of "the representation", with a place for the amount."""


def percent(change: float) -> str:
    """The size of a relative change.

    >>> percent(-0.214)
    '21 %'
    """
    return f"{abs(change):.0%}".replace("%", " %") if math.isfinite(change) else "an unknown share"


def loss(marker: str, direction: str, change: float) -> str:
    """What has become of the representation, in a few words.

    >>> loss("dimension", "lower", -0.21)
    'has lost 21 % of its dimension'
    """
    default = f"has a {direction} {marker} than before, by {{}}"
    return _LOSSES.get((marker, direction), default).format(percent(change))


def meaning(verdict: Verdict) -> str:
    """What the marker of a verdict is, and what its change means."""
    marker, direction, row = verdict.marker, verdict.direction, MARKERS.get(verdict.marker)
    if row is None:
        return f"{marker} left its range."
    phrase = _MEANINGS.get((marker, direction), f"{marker} is {direction} than before")
    return f"{phrase} ({marker}: {row.description})."


def forecast(verdict: Verdict) -> str:
    """What is known of new classes."""
    row = MARKERS.get(verdict.marker)
    if verdict.marker == "accuracy" and verdict.direction == "lower":
        return "Accuracy on new classes may differ."
    if verdict.marker == "capacity" and verdict.direction == "lower":
        return f"Within a run, faults lower it; among trained networks it forecasts little ({PAPER})."
    if row is None or row.worse != verdict.direction:
        return "Its effect on new classes is not known."
    held = ", even if validation accuracy holds" if verdict.marker in ("dimension", "utility") else ""
    amount = "fewer" if "fewer" in _MEANINGS.get((verdict.marker, verdict.direction), "") else f"a {row.worse} value"
    return f"Networks with {amount} transfer worse to new classes{held} ({row.source})."


def not_covered(verdict: Verdict) -> str:
    """What the verdict has no evidence on."""
    if "accuracy" in verdict.agreeing or (verdict.marker == "accuracy" and verdict.direction == "lower"):
        return "Accuracy on the training classes is also affected. Not covered: robustness to noise or corruption."
    return "Not covered: accuracy on the training classes, robustness to noise or corruption."


def causes(changed: Sequence[str]) -> list[str]:
    """What changed just before, and what to try about it; what to check if nothing is known to have changed."""
    if not changed:
        return [CHECK]
    remedies = [remedy for name, remedy in _REMEDIES.items() if any(c.startswith(name) for c in changed)]
    lines = [f"Changed just before: {'; '.join(changed)}."]
    return [*lines, f"Try: {'; '.join(remedies)}."] if remedies else lines


def at(step: int, epoch: int | None) -> str:
    """Step and epoch in words.

    >>> at(216, 8), at(216, None)
    ('epoch 8 (step 216)', 'step 216')
    """
    return f"step {step}" if epoch is None else f"epoch {epoch} (step {step})"


def times(checks: int) -> str:
    """How often in a row something was found."""
    return "1 measurement" if checks == 1 else f"{checks} measurements in a row"


def counted(number: int, one: str) -> str:
    """A number of things.

    >>> counted(1, "layer"), counted(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def numbers(verdict: Verdict) -> str:
    """The evidence in one line.

    >>> numbers(Verdict(True, "fc", "dimension", 1.2, 2.0, 0.1, since_step=216, since_epoch=8, checks=3))
    "dimension of 'fc' fell by 40 % (1.2, expected 2; 8.0 standard errors), low since epoch 8 (step 216)"
    """
    since = f"step {verdict.since_step}" if verdict.since_step is None else at(verdict.since_step, verdict.since_epoch)
    moved, state = ("fell", "low") if verdict.direction == "lower" else ("rose", "high")
    sure = f"; {verdict.sigmas:.1f} standard errors" if math.isfinite(verdict.sigmas) else ""
    return (
        f"{verdict.marker} of {verdict.layer!r} {moved} by {percent(verdict.change)} "
        f"({verdict.value:.3g}, expected {verdict.reference:.3g}{sure}), {state} since {since}"
    )
