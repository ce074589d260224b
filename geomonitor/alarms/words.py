"""From a verdict to words: what declined, by how much, what it means, what it does not cover, what to check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType

from geomonitor.alarms.context import what_changed
from geomonitor.alarms.harm import ALARMS_IN_THE_BENCH, NOTICES_IN_THE_BENCH
from geomonitor.alarms.verdict import Verdict
from geomonitor.errors import GeomonitorWarning
from geomonitor.history.history import History
from geomonitor.history.saved import SavedCheckpoint
from geomonitor.markers import MARKERS

_PAPER = "Chou et al. 2026, arXiv:2603.01879"
_REMEDIES = MappingProxyType(
    {
        "learning_rate": "restore the learning rate, or continue from a checkpoint before the change",
        "weight_decay": "restore the weight decay: strong decay removes features that the training classes do not need",
        "gradient_norm": "clip gradients, and check the batches of that time",
        "resumed": "compare the checkpoint with what was loaded: frozen or new layers, optimiser state, data order",
    }
)
_CHECK = "Check what changed just before: data, labels, augmentation, weight decay, learning rate, resume."
_DIRECTIONS = "fewer directions carry signal"
_PHRASES = MappingProxyType(
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


class GeometryDeclineWarning(GeomonitorWarning):
    """Watched markers have declined beyond the noise."""


def headline(verdict: Verdict) -> str:
    """The finding in one line.

    >>> headline(Verdict(True, "fc", "dimension", 1.2, 2.0, 0.1, since_step=216, since_epoch=8, checks=3))
    "dimension of 'fc' fell by 40 % (1.2, expected 2; 8.0 standard errors), low since epoch 8 (step 216)"
    """
    since = f"step {verdict.since_step}"
    if verdict.since_epoch is not None:
        since = f"epoch {verdict.since_epoch} ({since})"
    moved, state = ("fell", "low") if verdict.direction == "lower" else ("rose", "high")
    sure = f"; {verdict.sigmas:.1f} standard errors" if math.isfinite(verdict.sigmas) else ""
    return (
        f"{verdict.marker} of {verdict.layer!r} {moved} by {abs(verdict.change):.0%} "
        f"({verdict.value:.3g}, expected {verdict.reference:.3g}{sure}), {state} since {since}"
    ).replace("%", " %")


def explain(verdict: Verdict, changed: Sequence[str] = (), healthy: SavedCheckpoint | None = None) -> str:
    """The whole warning: finding, meaning, limits, what changed, what to do; plain text of a few short lines.

    Args:
        verdict: a decline.
        changed: what changed at that time, from :func:`what_changed`.
        healthy: the last checkpoint that was kept from before a decline, if there is one.
    """
    if verdict.noticed and not verdict.declined:
        return _notice(verdict, changed)
    lines = [f"geometry decline: {headline(verdict)}, {_times(verdict.checks)}."]
    if verdict.agreeing:
        lines.append(f"Also declining: {', '.join(verdict.agreeing)}.")
    lines += [f"Meaning: {_meaning(verdict)}", _forecast(verdict)]
    if verdict.calibrated:
        harmed, raised = ALARMS_IN_THE_BENCH
        lines.append(
            f"How likely is harm: in small runs of other tasks {harmed} of {raised} such alarms came with a fall of "
            "accuracy on new classes by 0.03 or more."
        )
    if "accuracy" in verdict.agreeing or (verdict.marker == "accuracy" and verdict.direction == "lower"):
        lines.append(
            "Accuracy on the training classes is also affected. Not covered: robustness to noise or corruption."
        )
    else:
        lines.append("Not covered: accuracy on the training classes, robustness to noise or corruption.")
    if changed:
        lines.append(f"Changed just before: {'; '.join(changed)}.")
        remedies = [remedy for name, remedy in _REMEDIES.items() if any(c.startswith(name) for c in changed)]
        lines.append(f"Try: {'; '.join(remedies)}.")
    else:
        lines.append(_CHECK)
    if healthy is not None and verdict.since_step is not None and healthy.step < verdict.since_step:
        lines.append(f"Last checkpoint from before the decline: {healthy}.")
    else:
        lines.append(f"Checkpoints from before step {verdict.since_step} precede the decline.")
    return "\n".join(lines)


def _notice(verdict: Verdict, changed: Sequence[str]) -> str:
    """Of a change that is no alarm: what changed, and why it is not one."""
    lines = [f"geometry notice: {headline(verdict)}, {_times(verdict.checks)}."]
    if verdict.agreeing:
        lines.append(f"Also changed: {', '.join(verdict.agreeing)}.")
    if changed:
        lines.append(f"Changed just before: {'; '.join(changed)}.")
    no_alarm = "No alarm: the change is smaller than, or of another kind than, those that an alarm needs."
    if verdict.calibrated:
        harmed, raised = NOTICES_IN_THE_BENCH
        no_alarm += (
            f" In the bench {harmed} of {raised} runs with a notice and no alarm lost accuracy on new classes: if you "
            "have data of new classes, measure transfer."
        )
    lines.append(no_alarm)
    return "\n".join(lines)


def explain_in(history: History, verdict: Verdict, healthy: SavedCheckpoint | None = None) -> str:
    """The whole warning, with what the history knows of that time; see :func:`explain`."""
    changed = [] if verdict.since_step is None else what_changed(history, verdict.since_step)
    return explain(verdict, changed, healthy)


def _meaning(verdict: Verdict) -> str:
    marker, direction, row = verdict.marker, verdict.direction, MARKERS.get(verdict.marker)
    if row is None:
        return f"{marker} left its range."
    phrase = _PHRASES.get((marker, direction), f"{marker} is {direction} than before")
    return f"{phrase} ({marker}: {row.description})."


def _forecast(verdict: Verdict) -> str:
    """What is known of new classes."""
    row = MARKERS.get(verdict.marker)
    if verdict.marker == "accuracy" and verdict.direction == "lower":
        return "Accuracy on new classes may differ."
    if verdict.marker == "capacity" and verdict.direction == "lower":
        return f"Within a run, faults lower it; among trained networks it forecasts little ({_PAPER})."
    if row is None or row.worse != verdict.direction:
        return "Its effect on new classes is not known."
    held = ", even if validation accuracy holds" if verdict.marker in ("dimension", "utility") else ""
    amount = "fewer" if "fewer" in _PHRASES.get((verdict.marker, verdict.direction), "") else f"a {row.worse} value"
    return f"Networks with {amount} transfer worse to new classes{held} ({row.source})."


def _times(checks: int) -> str:
    return "1 measurement" if checks == 1 else f"{checks} measurements in a row"
