"""The tables and the picture of ``docs/calibration.md``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.early_warning.calibration import Choice, Rates, outcomes, rates, wilson
from benchmarks.early_warning.families import FAILING, HEALTHY
from benchmarks.early_warning.outcomes import TRUTH, Outcome
from benchmarks.early_warning.trajectories import Run
from benchmarks.early_warning.warners import Warner
from geomonitor.alarms.panel import DEFAULT_WATCH


def table(choices: Sequence[Choice]) -> str:
    """Detection, false alarms and lead of each way to warn, with 95 % intervals."""
    lines = [f"| warns by | setting | {COLUMNS} |", "|---|---|" + "---|" * 5]
    lines += [f"| {c.warner.kind} | `{short(c.warner.settings)}` | {cells(c.held_out)} |" for c in choices]
    return "\n".join(lines)


def by_family(default: Warner, runs: Sequence[Run]) -> str:
    """Every family, by the default settings."""
    lines = [
        "| family | runs | truth falls in | found | alarms if it does not fall | false alarms | median lead "
        "| largest possible |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in (*FAILING, *HEALTHY):
        seen = outcomes(default, [run for run in runs if run.family == family])
        counted = rates(seen)
        false = counted.false if family in HEALTHY else counted.early
        found = share(counted.found, counted.failing)
        falls = "-" if family in HEALTHY else f"{counted.failing}"
        harmless = [o for o in seen if not o.run.healthy and not o.counts]
        needless = f"{sum(o.alarm is not None and not o.false for o in harmless)} of {len(harmless)}"
        lines.append(
            f"| {family} | {len(seen)} | {falls} | {found} | {needless if harmless else '-'} | {false} "
            f"| {number(counted.lead)} | {number(largest_lead(seen))} |"
        )
    return "\n".join(lines)


def by_family_and_way(ways: dict[str, Warner], runs: Sequence[Run]) -> str:
    """Found and false alarms of each way to warn in each family."""
    lines = [f"| family | {' | '.join(ways)} |", "|---|" + "---|" * len(ways)]
    for family in (*FAILING, "all healthy"):
        members = [r for r in runs if (r.healthy if family == "all healthy" else r.family == family)]
        cells = []
        for warner in ways.values():
            seen = rates(outcomes(warner, members))
            false = seen.false + seen.early
            found = f"{seen.found}/{seen.failing}" if seen.failing else "-"
            cells.append(f"{false}/{seen.healthy}" if seen.healthy else found + (f" ({false})" if false else ""))
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_fall(default: Warner, runs: Sequence[Run]) -> str:
    """Found by how much accuracy on new classes was lost."""
    lines = ["| fall of the truth | found |", "|---|---|"]
    seen = [o for o in outcomes(default, runs) if o.counts and o.truth is not None]
    for low, high in pairwise((0.02, 0.03, 0.05, 0.1, 1.0)):
        members = [o for o in seen if o.truth is not None and low <= o.truth.before - o.truth.end < high]
        lines.append(f"| {low:g} to {high:g} | {share(sum(o.found for o in members), len(members))} |")
    return "\n".join(lines)


def stopping(best: Warner, today: dict[str, Choice], runs: Sequence[Run]) -> str:
    """Truth at the stop against truth at the end, mean over failing runs whose truth falls."""
    lines = [
        "| stop by | truth at the stop | at the checkpoint to keep | at the end | before the fault | runs stopped |",
        "|---|---|---|---|---|---|",
    ]
    ways = {best.kind: best} | {
        kind: choice.warner for kind, choice in today.items() if kind.startswith("EarlyStopping")
    }
    for kind, warner in ways.items():
        counted = [o for o in outcomes(warner, runs) if o.counts]
        lines.append(
            f"| {kind} | {_mean(o.at(o.alarm) for o in counted)} "
            f"| {_mean(o.at(None if o.alarm is None else max(0, o.alarm - warner.back)) for o in counted)} "
            f"| {_mean(o.at(None) for o in counted)} "
            f"| {_mean(o.truth.before for o in counted if o.truth)} "
            f"| {sum(o.alarm is not None for o in counted)} of {len(counted)} |"
        )
    lines += [
        "",
        "*The checkpoint to keep* is the last one before the alarm; for `EarlyStopping`, the best by its own "
        "metric. A run that is not stopped counts with its end in all columns.",
    ]
    return "\n".join(lines)


def movements(runs: Sequence[Run]) -> str:
    """Median before the onset and at the end, of the truth and of some markers, by family and task."""
    columns = (TRUTH, "val_accuracy", *DEFAULT_WATCH, "utility", "nc1")
    lines = [f"| family | task | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    failing = [run for run in runs if not run.healthy and run.onset]
    for (family, task), group in groupby(failing, key=lambda run: (run.family, run.task)):
        members = list(group)
        cells = [" -> ".join(f"{x:.3g}" for x in _before_and_end(members, name)) for name in columns]
        lines.append(f"| {family} | {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(geometry: dict[str, Choice], today: dict[str, Choice], default: dict[str, Rates], path: Path) -> None:
    """Found against false alarms on new seeds: each way to warn is a point, the default is named."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.add_subplot()
    for choices, color, marker, label in (
        (geometry, "#0072B2", "o", "geometry"),
        (today, "#D55E00", "s", "used today"),
    ):
        x = [100 * c.held_out.false_alarms for c in choices.values()]
        y = [100 * c.held_out.detection for c in choices.values()]
        axis.plot(x, y, marker, color=color, label=label, alpha=0.7)
    for (label, seen), marker in zip(default.items(), "D*", strict=True):
        axis.plot(100 * seen.false_alarms, 100 * seen.detection, marker, color="black", label=label, markersize=9)
    axis.axvline(2, color="0.6", linewidth=1, linestyle=":")
    axis.set(xlabel="healthy runs with a false alarm, %", ylabel="runs that get worse found in time or late, %")
    axis.set(ylim=(-3, 103), xlim=(-1, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def largest_lead(seen: Sequence[Outcome]) -> float:
    """Median lead of alarms at the onset of every fault; NaN where no truth falls."""
    leads = [o.truth.half - (o.run.onset or 0) for o in seen if o.counts and o.truth and o.truth.half is not None]
    return float(np.median(leads)) if leads else math.nan


def _before_and_end(runs: Sequence[Run], name: str) -> tuple[float, float]:
    before = [float(np.nanmean(r.columns[name][max(0, r.onset - 3) : r.onset])) for r in runs if r.onset]
    end = [_last(r.columns[name]) for r in runs]
    return float(np.nanmedian(before)), float(np.nanmedian(end))


def _last(values: np.ndarray) -> float:
    late = values[-3:][np.isfinite(values[-3:])]
    return float(late.mean()) if len(late) else math.nan


COLUMNS = "found | false alarms | before the onset | median lead | lead if possible"


def cells(seen: Rates) -> str:
    return (
        f"{share(seen.found, seen.failing)} | {share(seen.false, seen.healthy)} | {seen.early} of {seen.started} "
        f"| {number(seen.lead)} | {number(seen.slow_lead)}"
    )


def share(count: int, of: int) -> str:
    low, high = wilson(count, of)
    return f"{count} of {of} ({100 * low:.0f}-{100 * high:.0f} %)" if of else "-"


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.1f}"


def _mean(values: Iterable[float]) -> str:
    return f"{np.mean(known):.3f}" if (known := list(values)) else "-"


def short(settings: str) -> str:
    """Settings without the name of the detector."""
    return settings.partition("(")[2].rstrip(")") if settings.endswith(")") else settings
