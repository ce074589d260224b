"""Replays every detector and every baseline on the cached runs: ``docs/calibration.md`` and its picture.

OMP_NUM_THREADS=1 python -m tests.benchmarks.early_warning.report      # minutes; trains nothing
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from geomonitor import DropFromReference
from geomonitor.decline import DEFAULT_WATCH
from tests.benchmarks.early_warning.calibration import (
    CALIBRATION,
    Choice,
    choose,
    halves,
    outcomes,
    rates,
    wilson,
)
from tests.benchmarks.early_warning.families import FAILING, HEALTHY
from tests.benchmarks.early_warning.outcomes import TRUTH, truth_of
from tests.benchmarks.early_warning.trajectories import Run, load_runs
from tests.benchmarks.early_warning.warners import (
    Warner,
    baselines,
    first_vote,
    geometry_warners,
    reference_warners,
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
    geometry = choose(geometry_warners(), chosen_on, held_out)
    geometry |= choose(reference_warners(references), chosen_on, held_out)
    today = choose(baselines(), chosen_on, held_out)
    default = shipped()
    ways = sorted(geometry.values(), key=merit, reverse=True)
    others = [next(c for c in ways if c.warner.kind.startswith(kind)) for kind in ("cusum", "trend", "reference runs")]
    shown = list(dict.fromkeys([c.warner.kind for c in (*ways[:8], *others)]))
    page = [
        _head(runs, chosen_on, held_out),
        "## The default\n\n" + of_default(default, chosen_on, held_out),
        "## Detectors on the held-out half\n\nThe eight best on the half that settings were chosen on, and the best of "
        "each other kind.\n\n" + table([geometry[kind] for kind in shown]),
        "## What people use today, calibrated in the same way\n\n"
        + table(sorted(today.values(), key=merit, reverse=True)),
        "## By family\n\n" + by_family(default, runs),
        "## What stopping at the alarm would have bought\n\n" + stopping(default, today, held_out),
        "## Where geometry moves with the truth, and where it does not\n\n" + movements(runs),
    ]
    (options.output / "calibration.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    picture(geometry, today, options.output / "calibration.png")
    print("\n\n".join(page))


def merit(choice: Choice) -> tuple[float, ...]:
    """Order of the table: what was chosen on, never what is reported."""
    allowed = choice.chosen_on.false + choice.chosen_on.early <= 0.02 * (
        choice.chosen_on.healthy + choice.chosen_on.started
    )
    return (float(allowed), choice.chosen_on.detection, choice.warner.caution)


def table(choices: Sequence[Choice], first: int | None = None) -> str:
    """Detection, false alarms and lead of each way to warn, with 95 % intervals."""
    lines = [
        "| warns by | setting | found | false alarms | before the onset | median lead |",
        "|---|---|---|---|---|---|",
    ]
    for choice in choices[:first]:
        seen = choice.held_out
        lines.append(
            f"| {choice.warner.kind} | `{_short(choice.warner.settings)}` "
            f"| {_share(seen.found, seen.failing)} | {_share(seen.false, seen.healthy)} "
            f"| {seen.early} of {seen.started} | {_number(seen.lead)} |"
        )
    return "\n".join(lines)


def shipped() -> Warner:
    """What a monitor does where nobody says otherwise."""
    detector = DropFromReference()
    return Warner("default", repr(detector), functools.partial(first_vote, dict.fromkeys(DEFAULT_WATCH, detector), 1))


def of_default(default: Warner, chosen_on: Sequence[Run], held_out: Sequence[Run]) -> str:
    """The default on both halves."""
    lines = [
        f"`{_short(default.settings)}` on {' and '.join(DEFAULT_WATCH)}. One reading in decline (`patience_checks=1`) "
        "finds a few more, but one bad measurement would then be an alarm; see below.",
        "",
        "| half | found | false alarms | before the onset | median lead |",
        "|---|---|---|---|---|",
    ]
    for name, runs in (("chosen on", chosen_on), ("held out", held_out)):
        seen = rates(outcomes(default, runs))
        lines.append(
            f"| {name} | {_share(seen.found, seen.failing)} | {_share(seen.false, seen.healthy)} "
            f"| {seen.early} of {seen.started} | {_number(seen.lead)} |"
        )
    return "\n".join(lines)


def by_family(default: Warner, runs: Sequence[Run]) -> str:
    """Every family, by the default settings; those held out had no part in their choice."""
    lines = [
        "| family | half | runs | truth falls in | found | false alarms | median lead |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in (*FAILING, *HEALTHY):
        of_family = [run for run in runs if run.family == family]
        seen = rates(outcomes(default, of_family))
        false = seen.false if family in HEALTHY else seen.early
        found = _share(seen.found, seen.failing) if seen.failing else "-"
        falls = "-" if family in HEALTHY else f"{seen.failing}"
        half = "chosen on" if family in CALIBRATION else "held out"
        lines.append(f"| {family} | {half} | {len(of_family)} | {falls} | {found} | {false} | {_number(seen.lead)} |")
    return "\n".join(lines)


def stopping(best: Warner, today: dict[str, Choice], runs: Sequence[Run]) -> str:
    """Truth at the stop against truth at the end, mean over failing runs whose truth falls."""
    lines = [
        "| stop by | truth at the stop | truth at the end | truth before the fault | runs stopped |",
        "|---|---|---|---|---|",
    ]
    ways = {best.kind: best} | {
        kind: choice.warner for kind, choice in today.items() if kind.startswith("EarlyStopping")
    }
    for kind, warner in ways.items():
        counted = [o for o in outcomes(warner, runs) if o.counts]
        lines.append(
            f"| {kind} | {_mean(o.at(o.alarm) for o in counted)} | {_mean(o.at(None) for o in counted)} "
            f"| {_mean(o.truth.before for o in counted if o.truth)} "
            f"| {sum(o.alarm is not None for o in counted)} of {len(counted)} |"
        )
    return "\n".join(lines)


def movements(runs: Sequence[Run]) -> str:
    """Median before the onset and at the end, of the truth and of four markers, by family and task."""
    columns = (TRUTH, "val_accuracy", "dimension", "utility", "participation_ratio_per_class", "effective_rank")
    lines = [f"| family | task | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    failing = [run for run in runs if not run.healthy and run.onset]
    for (family, task), group in groupby(failing, key=lambda run: (run.family, run.task)):
        members = list(group)
        cells = [" -> ".join(f"{x:.2f}" for x in _before_and_end(members, name)) for name in columns]
        lines.append(f"| {family} | {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(geometry: dict[str, Choice], today: dict[str, Choice], path: Path) -> None:
    """Found against false alarms on the held-out half: each way to warn is a point."""
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
            f"Settings were chosen on {len(chosen_on)} runs of the families {', '.join(sorted(CALIBRATION))}: most "
            "found at no more than one false alarm in fifty runs. All figures are of the other "
            f"{len(held_out)} runs, of families that had no part in the choice.",
            "",
            "What to know before believing it: the networks are small, measured with 30 points a class and 100 "
            "directions; the detectors were written by people who knew the fault of raised weight decay; families were "
            "strengthened after a look at the truth of first runs; the sets that watch NC1 both ways were added to the "
            "candidates after a look at a part of the held-out runs.",
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


def _share(count: int, of: int) -> str:
    low, high = wilson(count, of)
    return f"{count} of {of} ({100 * low:.0f}-{100 * high:.0f} %)" if of else "-"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.1f}"


def _mean(values: Iterable[float]) -> str:
    known = list(values)
    return f"{np.mean(known):.3f}" if known else "-"


def _short(settings: str) -> str:
    return settings.replace("DropFromReference(", "").replace("Cusum(", "").replace("Trend(", "").rstrip(")")


if __name__ == "__main__":
    main()
