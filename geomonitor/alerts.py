"""From a verdict to words: what declined, by how much, what it forecasts, what it does not, what to look at."""

from __future__ import annotations

from geomonitor.decline import Verdict
from geomonitor.errors import GeomonitorWarning


class GeometryDeclineWarning(GeomonitorWarning):
    """A watched marker has declined beyond the noise."""


def headline(verdict: Verdict) -> str:
    """The finding in one line.

    >>> headline(Verdict(True, "penultimate", "dimension", 1.2, 2.0, 0.1, since_step=216, since_epoch=8, checks=3))
    "dimension of 'penultimate' fell by 40 % (2 -> 1.2, 8.0 standard errors), low since epoch 8 (step 216)"
    """
    since = f"step {verdict.since_step}"
    if verdict.since_epoch is not None:
        since = f"epoch {verdict.since_epoch} ({since})"
    return (
        f"{verdict.marker} of {verdict.layer!r} fell by {-verdict.change:.0%} "
        f"({verdict.reference:.3g} -> {verdict.value:.3g}, {verdict.sigmas:.1f} standard errors), low since {since}"
    ).replace("%", " %")


def explain(verdict: Verdict) -> str:
    """The whole warning: finding, meaning, limits, what to do; plain text of a few short lines."""
    return "\n".join(
        [
            f"geometry decline: {headline(verdict)}, {verdict.checks} measurements in a row.",
            "It means: networks of lower dimension and utility transfer worse to new classes (Chou et al. 2026, "
            "arXiv:2603.01879), even while validation accuracy holds.",
            "It says nothing of accuracy on the known classes, nor of noisy or corrupted inputs.",
            "Look at what changed just before: weight decay, learning rate, data, labels, a resumed checkpoint. "
            f"Checkpoints from before step {verdict.since_step} precede the decline.",
        ]
    )
