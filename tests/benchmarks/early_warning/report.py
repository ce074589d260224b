"""Replays every detector and every baseline on the cached runs: ``docs/calibration.md`` and its picture.

OMP_NUM_THREADS=1 python -m tests.benchmarks.early_warning.report      # minutes; trains nothing
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from geomonitor.decline import DEFAULT_WATCH
from geomonitor.detectors.readings import Walker
from geomonitor.panel import make_panel
from tests.benchmarks.early_warning.calibration import (
    CHOSEN_SEEDS,
    Choice,
    Rates,
    choose,
    halves,
    of_unknown_families,
    outcomes,
    preference,
    rates,
    wilson,
)
from tests.benchmarks.early_warning.families import FAILING, HEALTHY
from tests.benchmarks.early_warning.outcomes import TRUTH, Outcome, truth_of
from tests.benchmarks.early_warning.simulated import SIMULATED, is_quiet
from tests.benchmarks.early_warning.trajectories import Run, load_runs
from tests.benchmarks.early_warning.warners import (
    Warner,
    baselines,
    geometry_warners,
    panel_warner,
    reference_warners,
    told_watch,
)

DOCS = Path(__file__).parents[3] / "docs"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=DOCS)
    options = parser.parse_args()
    runs = load_runs()
    chosen_on, held_out = halves(runs)
    references = [run for run in chosen_on if run.healthy]
    geometry = choose(geometry_warners(), chosen_on, held_out, is_quiet)
    geometry |= choose(reference_warners(references), chosen_on, held_out)
    today = choose(baselines(), chosen_on, held_out)
    default = shipped()
    drops = [warner for warner in geometry_warners() if warner.kind.startswith("drop from reference")]
    unknown = of_unknown_families(drops, chosen_on, held_out, is_quiet)
    ways = sorted(geometry.values(), key=merit, reverse=True)
    kinds = ("drop from reference", "cusum", "trend", "reference runs")
    best = [next(c for c in ways if c.warner.kind.startswith(kind)) for kind in kinds]
    votes = next(c for c in ways if "2 votes" in c.warner.kind)
    shown = {c.warner.kind: c for c in (*ways[:8], *best, votes)}
    baseline = sorted(today.values(), key=merit, reverse=True)
    others = [c.warner for c in (*best, votes, *baseline) if not is_default(c.warner, default)]
    columns = {"default": default} | {warner.kind: warner for warner in others}
    page = [
        _head(runs, chosen_on, held_out),
        "## The default\n\n" + of_default(default, chosen_on, held_out, unknown),
        "## Detectors on new seeds\n\nThe eight best on the runs that settings were chosen on, the best of each other "
        'kind, and the best that asks for two kinds of markers ("2 votes").\n\n' + table([*shown.values()]),
        "## What people use today, calibrated in the same way\n\n" + table(baseline),
        "## By family, on new seeds\n\n" + by_family(default, held_out),
        "## By family and way to warn, on new seeds\n\nFound of the runs whose truth falls; false alarms (before the "
        "onset, too) in brackets where there were any.\n\n" + by_family_and_way(columns, held_out),
        "## By the size of the fall, on new seeds\n\n" + by_fall(default, held_out),
        "## What stopping at the alarm would have bought, on new seeds\n\n" + stopping(default, today, held_out),
        "## Where geometry moves with the truth, and where it does not\n\n" + movements(runs),
    ]
    (options.output / "calibration.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    picture(geometry, today, options.output / "calibration.png")
    print("\n\n".join(page))


def merit(choice: Choice) -> tuple[float, ...]:
    """Order of the table: what was chosen on, never what is reported."""
    return preference(choice.chosen_on, choice.warner.caution)


def table(choices: Sequence[Choice]) -> str:
    """Detection, false alarms and lead of each way to warn, with 95 % intervals."""
    lines = [f"| warns by | setting | {_COLUMNS} |", "|---|---|" + "---|" * 5]
    lines += [f"| {c.warner.kind} | `{_short(c.warner.settings)}` | {_cells(c.held_out)} |" for c in choices]
    return "\n".join(lines)


def shipped() -> Warner:
    """What a monitor does where nobody says otherwise."""
    watch, detector, votes = make_panel(DEFAULT_WATCH)
    assert isinstance(detector, Walker)
    return panel_warner("default", detector, watch, votes)


def is_default(warner: Warner, default: Warner) -> bool:
    """Whether a way among the others is the default itself, so that it needs no column of its own."""
    return warner.settings == default.settings and warner.kind.endswith(told_watch(DEFAULT_WATCH, 2))


def of_default(default: Warner, chosen_on: Sequence[Run], held_out: Sequence[Run], unknown: Sequence[Outcome]) -> str:
    """The default where it was chosen and elsewhere."""
    parts = {
        "chosen on": rates(outcomes(default, chosen_on)),
        "**new seeds**": rates(outcomes(default, held_out)),
        "new seeds of families that had no part in the choice": rates(unknown),
    }
    lines = [
        f"Two kinds of markers have to agree, out of {', '.join(DEFAULT_WATCH)} (the first two are of one kind), each "
        f"judged by `{default.settings}`.",
        "",
        f"| runs | {_COLUMNS} |",
        "|---|" + "---|" * 5,
    ]
    lines += [f"| {name} | {_cells(seen)} |" for name, seen in parts.items()]
    lines += [
        "",
        "The last row says what to expect of a fault that is not in the list: for each family the setting, out of all "
        "sets of markers and settings of `DropFromReference`, is chosen on the other families alone.",
    ]
    return "\n".join(lines)


def by_family(default: Warner, runs: Sequence[Run]) -> str:
    """Every family, by the default settings."""
    lines = [
        "| family | runs | truth falls in | found | alarms where it does not fall | false alarms | median lead "
        "| largest possible |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in (*FAILING, *HEALTHY):
        seen = outcomes(default, [run for run in runs if run.family == family])
        counted = rates(seen)
        false = counted.false if family in HEALTHY else counted.early
        found = _share(counted.found, counted.failing)
        falls = "-" if family in HEALTHY else f"{counted.failing}"
        harmless = [o for o in seen if not o.run.healthy and not o.counts]
        needless = f"{sum(o.alarm is not None and not o.false for o in harmless)} of {len(harmless)}"
        possible = [
            o.truth.half - (o.run.onset or 0) for o in seen if o.counts and o.truth and o.truth.half is not None
        ]
        most = float(np.median(possible)) if possible else math.nan
        lines.append(
            f"| {family} | {len(seen)} | {falls} | {found} | {needless if harmless else '-'} | {false} "
            f"| {_number(counted.lead)} | {_number(most)} |"
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
        lines.append(f"| {low:g} to {high:g} | {_share(sum(o.found for o in members), len(members))} |")
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
        "*The checkpoint to keep* is the one that the way to warn names: the last one before the alarm; for "
        "`EarlyStopping` the best by its own metric. A run that is not stopped counts with its end everywhere.",
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


def picture(geometry: dict[str, Choice], today: dict[str, Choice], path: Path) -> None:
    """Found against false alarms on new seeds: each way to warn is a point."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.add_subplot()
    for choices, color, marker, label in (
        (geometry, "#0072B2", "o", "geometry"),
        (today, "#D55E00", "s", "used today"),
    ):
        x = [100 * c.held_out.false_alarms for c in choices.values()]
        y = [100 * c.held_out.detection for c in choices.values()]
        axis.plot(x, y, marker, color=color, label=label, alpha=0.7)
    axis.axvline(2, color="0.6", linewidth=1, linestyle=":")
    axis.set(xlabel="healthy runs with a false alarm, %", ylabel="failing runs found in time or late, %")
    axis.set(ylim=(-3, 103), xlim=(-1, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _head(runs: Sequence[Run], chosen_on: Sequence[Run], held_out: Sequence[Run]) -> str:
    falls = [truth_of(run) for run in runs if not run.healthy]
    return "\n".join(
        [
            "# Calibration of the warnings",
            "",
            "Made by `make bench-warning` from the trajectories in `tests/benchmarks/early_warning/`.",
            "",
            f"{len(runs)} runs: {sum(r.healthy for r in runs)} healthy ones and {len(falls)} with a fault, of which "
            f"the truth falls in {sum(t is not None and t.falls for t in falls)}. *Truth*: accuracy of a linear probe "
            "on classes that the network never saw. It falls when the mean of the last three epochs lies below the "
            "one of the three before the fault by 0.02 and by three standard errors. *Found*: an alarm after the onset "
            "in such a run. *Lead*: epochs from the alarm to the moment when half of the fall has happened; negative "
            "when late. Intervals are 95 % (Wilson).",
            "",
            f"Settings were chosen on {len(chosen_on)} runs, seeds {CHOSEN_SEEDS[0]} to {CHOSEN_SEEDS[-1]} of every "
            "family: most found at no more than one false alarm in fifty runs, there and among "
            f"{SIMULATED:,} simulated healthy runs, which have more noise and drift (`simulated.py`; what people use "
            f"today is spared that). All tables are of the other {len(held_out)} runs, whose seeds were not looked at "
            "before the settings were chosen.",
            "",
            "What to know before believing it: the networks are small; the families were made stronger after a look at "
            "the truth of first runs; which sets of markers to try, and from how many readings noise is taken, was "
            "decided after a look at all families of the seeds that settings were chosen on. In a sudden fault the "
            "truth falls with the first measurement after the onset: there no warning can be early, and a lead of 0 is "
            "the most there is. *Lead where it can be*: the median over the other runs.",
            "",
            "![Each way to warn: failing runs found against healthy runs with a false alarm](calibration.png)",
        ]
    )


def _before_and_end(runs: Sequence[Run], name: str) -> tuple[float, float]:
    before = [float(np.nanmean(r.columns[name][max(0, r.onset - 3) : r.onset])) for r in runs if r.onset]
    end = [_last(r.columns[name]) for r in runs]
    return float(np.nanmedian(before)), float(np.nanmedian(end))


def _last(values: np.ndarray) -> float:
    late = values[-3:][np.isfinite(values[-3:])]
    return float(late.mean()) if len(late) else math.nan


_COLUMNS = "found | false alarms | before the onset | median lead | lead where it can be"


def _cells(seen: Rates) -> str:
    return (
        f"{_share(seen.found, seen.failing)} | {_share(seen.false, seen.healthy)} | {seen.early} of {seen.started} "
        f"| {_number(seen.lead)} | {_number(seen.slow_lead)}"
    )


def _share(count: int, of: int) -> str:
    low, high = wilson(count, of)
    return f"{count} of {of} ({100 * low:.0f}-{100 * high:.0f} %)" if of else "-"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.1f}"


def _mean(values: Iterable[float]) -> str:
    return f"{np.mean(known):.3f}" if (known := list(values)) else "-"


def _short(settings: str) -> str:
    return settings.replace("DropFromReference(", "").replace("Cusum(", "").replace("Trend(", "").rstrip(")")


if __name__ == "__main__":
    main()
