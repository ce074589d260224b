"""Settings chosen on some seeds, judged on the others; and by families that had no part in the choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.early_warning.outcomes import Outcome, Truth, truth_of
from benchmarks.early_warning.trajectories import Run
from benchmarks.early_warning.warners import Warner

CHOSEN_SEEDS = range(12)
"""Runs of these seeds were looked at while detectors were written and settings chosen; README.md has the history."""
NEW_SEEDS, NEW_HEALTHY_SEEDS = range(30, 36), range(28, 32)
"""Failing and healthy runs of these seeds were opened after the defaults had been committed, all others before."""
FALSE_ALARM_RATE = 1 / 50
"""Of healthy runs: those of the bench, and simulated ones (``simulated.py``)."""


class Rates(NamedTuple):
    """What a warner did in a set of runs."""

    found: int
    failing: int
    """runs in which the truth falls"""
    false: int
    healthy: int
    early: int
    """alarms before the onset, in failing runs"""
    started: int
    """failing runs, of whatever truth"""
    lead: float
    """median epochs between the alarm and half of the fall; NaN where nothing was found"""
    slow_lead: float
    """the same over the runs in which half of the fall had not yet happened at the first measurement of the fault"""

    @property
    def detection(self) -> float:
        return self.found / self.failing if self.failing else math.nan

    @property
    def false_alarms(self) -> float:
        return self.false / self.healthy if self.healthy else math.nan


class Choice(NamedTuple):
    """The best setting of a kind, and how it did where it was chosen and elsewhere."""

    warner: Warner
    chosen_on: Rates
    held_out: Rates


def chosen_and_new(runs: Iterable[Run]) -> tuple[list[Run], list[Run]]:
    """What settings are chosen on, and what is reported: the first seeds of all families, and the new ones."""
    runs = list(runs)
    return [r for r in runs if r.seed in CHOSEN_SEEDS], [r for r in runs if is_new(r)]


def is_new(run: Run) -> bool:
    """Whether a run had no part in any choice."""
    return run.seed in (NEW_HEALTHY_SEEDS if run.healthy else NEW_SEEDS)


def outcomes(warner: Warner, runs: Iterable[Run]) -> list[Outcome]:
    """What the warner does in each run."""
    return [Outcome(run, _truth(run), warner.first_alarm(run)) for run in runs]


_TRUTHS: dict[tuple[str, str, int], Truth | None] = {}


def _truth(run: Run) -> Truth | None:
    key = (run.family, run.task, run.seed)
    if key not in _TRUTHS:
        _TRUTHS[key] = truth_of(run)
    return _TRUTHS[key]


def rates(of_runs: Sequence[Outcome]) -> Rates:
    """Counts over runs."""
    leads = [o.lead for o in of_runs if o.lead is not None]
    slow = [o.lead for o in of_runs if o.lead is not None and o.slow]
    sick = [o for o in of_runs if not o.run.healthy]
    return Rates(
        found=sum(o.found for o in of_runs),
        failing=sum(o.counts for o in of_runs),
        false=sum(o.false for o in of_runs if o.run.healthy),
        healthy=sum(o.run.healthy for o in of_runs),
        early=sum(o.false for o in sick if o.run.onset is not None),
        started=sum(o.run.onset is not None for o in sick),
        lead=float(np.median(leads)) if leads else math.nan,
        slow_lead=float(np.median(slow)) if slow else math.nan,
    )


def choose(
    warners: Iterable[Warner],
    chosen_on: Sequence[Run],
    held_out: Sequence[Run],
    admissible: Callable[[Warner], bool] = lambda _: True,
) -> dict[str, Choice]:
    """The best admissible setting of each kind of warner, see :func:`preference`; a kind that has none is left out."""
    tried: dict[str, list[tuple[Warner, Rates]]] = {}
    for warner in warners:
        tried.setdefault(warner.kind, []).append((warner, rates(outcomes(warner, chosen_on))))
    choices = {}
    for kind, settings in tried.items():
        settings.sort(key=lambda setting: preference(setting[1], setting[0].caution), reverse=True)
        for warner, seen in settings:
            if admissible(warner):
                choices[kind] = Choice(warner, seen, rates(outcomes(warner, held_out)))
                break
    return choices


def preference(seen: Rates, caution: float) -> tuple[float, ...]:
    """Most found at no more false alarms than one in fifty healthy runs, then fewest false alarms, then caution.

    Alarms before the onset of a fault are false alarms of the same kind and count with them. Where no setting is quiet
    enough the quietest one is preferred.
    """
    false = seen.false + seen.early
    if false <= FALSE_ALARM_RATE * (seen.healthy + seen.started):
        return (1.0, seen.detection, -float(false), caution)
    return (0.0, -float(false), seen.detection, caution)


def of_unknown_families(
    warners: Iterable[Warner],
    chosen_on: Sequence[Run],
    held_out: Sequence[Run],
    admissible: Callable[[Warner], bool] = lambda _: True,
) -> list[Outcome]:
    """What happens in a family that had no part in the choice: for each one the choice is made without it.

    Returns:
        the outcomes of ``held_out``, each by the admissible warner that is preferred on the other families of
        ``chosen_on``.
    """
    families = sorted({run.family for run in held_out})
    parts = [[run for run in chosen_on if run.family == family] for family in families]
    seen = [(warner, [rates(outcomes(warner, part)) for part in parts]) for warner in warners]
    found = []
    for left_out, family in enumerate(families):
        ranks = [preference(_sum(of[:left_out] + of[left_out + 1 :]), warner.caution) for warner, of in seen]
        order = sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)
        warner = next(seen[place][0] for place in order if admissible(seen[place][0]))
        found += outcomes(warner, [run for run in held_out if run.family == family])
    return found


def _sum(parts: Sequence[Rates]) -> Rates:
    """Counts of several sets of runs together, without the medians."""
    counts = [sum(column) for column in zip(*(part[:6] for part in parts), strict=True)]
    return Rates(*counts, lead=math.nan, slow_lead=math.nan)


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a rate.

    >>> tuple(round(x, 2) for x in wilson(0, 80))
    (0.0, 0.05)
    """
    if not trials:
        return 0.0, 1.0
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
