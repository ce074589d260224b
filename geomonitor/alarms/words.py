"""From a verdict to words: what declined, by how much, what it forecasts, what it does not, what to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType

from geomonitor.alarms.verdict import Verdict
from geomonitor.errors import GeomonitorWarning
from geomonitor.history.history import History
from geomonitor.markers import MARKERS

CONTEXT = ("learning_rate", "weight_decay", "gradient_norm", "resumed")
"""What a training loop can tell beside the markers; kept in the history, with layer "", to explain an alarm."""

_PAPER = "Chou et al. 2026, arXiv:2603.01879"
_LEAST_CHANGE = MappingProxyType({"learning_rate": 1.25, "weight_decay": 1.25, "gradient_norm": 10.0})
_REMEDIES = MappingProxyType(
    {
        "learning_rate": "bring the learning rate back, or go on from a checkpoint before the change",
        "weight_decay": "bring the weight decay back: strong decay flattens features that known classes do not need",
        "gradient_norm": "clip gradients and look at the batches of that time",
        "resumed": "compare the checkpoint with what was loaded: frozen or fresh layers, optimiser state, data order",
    }
)


class GeometryDeclineWarning(GeomonitorWarning):
    """A watched marker has declined beyond the noise."""


def headline(verdict: Verdict) -> str:
    """The finding in one line.

    >>> headline(Verdict(True, "fc", "dimension", 1.2, 2.0, 0.1, since_step=216, since_epoch=8, checks=3))
    "dimension of 'fc' fell by 40 % (1.2 where 2 was expected, 8.0 standard errors), low since epoch 8 (step 216)"
    """
    since = f"step {verdict.since_step}"
    if verdict.since_epoch is not None:
        since = f"epoch {verdict.since_epoch} ({since})"
    moved, state = ("fell", "low") if verdict.direction == "lower" else ("rose", "high")
    sure = f", {verdict.sigmas:.1f} standard errors" if math.isfinite(verdict.sigmas) else ""
    return (
        f"{verdict.marker} of {verdict.layer!r} {moved} by {abs(verdict.change):.0%} "
        f"({verdict.value:.3g} where {verdict.reference:.3g} was expected{sure}), {state} since {since}"
    ).replace("%", " %")


def explain(verdict: Verdict, changed: Sequence[str] = ()) -> str:
    """The whole warning: finding, meaning, limits, what changed, what to do; plain text of a few short lines.

    Args:
        verdict: a decline.
        changed: what changed at that time, from :func:`what_changed`.
    """
    lines = [f"geometry decline: {headline(verdict)}, {_times(verdict.checks)}."]
    if verdict.agreeing:
        lines.append(f"In decline, too: {', '.join(verdict.agreeing)}.")
    lines.append(f"It means: {_meaning(verdict)}")
    if "accuracy" in verdict.agreeing or (verdict.marker == "accuracy" and verdict.direction == "lower"):
        lines.append("The known classes suffer, too. It says nothing of noisy or corrupted inputs.")
    else:
        lines.append("It says nothing of accuracy on the known classes, nor of noisy or corrupted inputs.")
    if changed:
        lines.append(f"Changed at that time: {'; '.join(changed)}.")
        remedies = [remedy for name, remedy in _REMEDIES.items() if any(c.startswith(name) for c in changed)]
        lines.append(f"Try: {'; '.join(remedies)}.")
    else:
        lines.append(
            "Look at what changed just before: data, labels, augmentation, weight decay, learning rate, resume."
        )
    lines.append(f"Checkpoints from before step {verdict.since_step} precede the decline.")
    return "\n".join(lines)


def what_changed(history: History, since_step: int) -> list[str]:
    """What the training loop told that changed just before or at the beginning of a decline.

    Args:
        history: with records of :data:`CONTEXT`.
        since_step: first measurement of the decline, in optimiser steps.

    Returns:
        One phrase for each, most often none: a change of at least a quarter in learning rate or weight decay, tenfold
        in gradient norm (that of one batch, which varies by a factor of a few), or a resume, within the two
        measurements before ``since_step``.

    >>> from geomonitor import History, Record
    >>> told = [Record(s, None, "", "weight_decay", v) for s, v in ((10, 0.01), (20, 0.01), (30, 0.5), (40, 0.5))]
    >>> what_changed(History(told), since_step=40)
    ['weight_decay 0.01 -> 0.5 between steps 20 and 30']
    """
    found = []
    for name in CONTEXT:
        series = history.series("", name)
        first = max(0, int(series.steps.searchsorted(since_step)) - 2)
        last = int(series.steps.searchsorted(since_step, side="right"))
        for n in range(first, last):
            value, step = series.values[n], series.steps[n]
            if name == "resumed":
                found += [f"resumed before step {step}"] if value else []
            elif n and _ratio(series.values[n - 1], value) >= _LEAST_CHANGE[name]:
                before = f"{series.values[n - 1]:.3g} -> {value:.3g}"
                found.append(f"{name} {before} between steps {series.steps[n - 1]} and {step}")
    return found


def _meaning(verdict: Verdict) -> str:
    if verdict.marker in ("dimension", "utility") and verdict.direction == "lower":
        return (
            f"networks of lower dimension and utility transfer worse to new classes ({_PAPER}), even while validation "
            "accuracy holds."
        )
    if verdict.marker == "capacity" and verdict.direction == "lower":
        return (
            "the known classes are harder to tell apart than before. Within a run that goes with faults; among "
            f"finished networks capacity forecasts little ({_PAPER})."
        )
    if verdict.marker == "accuracy" and verdict.direction == "lower":
        return "fewer points of the probe set are classified right than before; new classes may fare otherwise."
    row = MARKERS.get(verdict.marker)
    if row is None:
        return f"{verdict.marker} left the range that it had."
    forecast = "worse transfer to new classes goes with it"
    if row.worse != verdict.direction:
        forecast = "what it forecasts for new classes is not known"
    return f"{verdict.marker} is {row.description}; {forecast} ({row.source})."


def _times(checks: int) -> str:
    return "1 measurement" if checks == 1 else f"{checks} measurements in a row"


def _ratio(before: float, after: float) -> float:
    """By what factor a value changed, up or down; infinite from or to 0, 1 where either is not known."""
    low, high = sorted((abs(before), abs(after)))
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        return 1.0
    return high / low if low else math.inf
