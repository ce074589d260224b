"""Replays every detector and every baseline on the cached runs: ``docs/calibration.md`` and its picture.

OMP_NUM_THREADS=1 python -m benchmarks.early_warning.report      # minutes; trains nothing
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.early_warning import dependence
from benchmarks.early_warning.calibration import (
    CHOSEN_SEEDS,
    NEW_HEALTHY_SEEDS,
    NEW_SEEDS,
    Choice,
    Rates,
    choose,
    chosen_and_new,
    is_new,
    of_unknown_families,
    outcomes,
    preference,
    rates,
)
from benchmarks.early_warning.outcomes import Outcome, truth_of
from benchmarks.early_warning.simulated import SIMULATED, is_quiet
from benchmarks.early_warning.tables import (
    COLUMNS,
    by_fall,
    by_family,
    by_family_and_way,
    cells,
    largest_lead,
    movements,
    number,
    picture,
    stopping,
    table,
)
from benchmarks.early_warning.trajectories import CHECKS, Run, load_runs
from benchmarks.early_warning.warners import (
    Warner,
    baselines,
    geometry_warners,
    judge_beforehand,
    panel_warner,
    reference_warners,
    told_watch,
)
from benchmarks.early_warning.within_epochs import (
    Fine,
    by_way,
    choose_at_this_pace,
    load_fine,
    of_failing,
    of_healthy,
    rates_of,
)
from benchmarks.elsewhere import report as elsewhere
from benchmarks.elsewhere import runs as cached
from geomonitor.alarms.detectors import IncrementalDetector
from geomonitor.alarms.panel import DEFAULT_WATCH, VOTES, Panel
from geomonitor.alarms.votes import family_of

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=DOCS)
    options = parser.parse_args()
    runs, fine = load_runs(), load_fine()
    chosen_on, held_out = chosen_and_new(runs)
    judge_beforehand([*geometry_warners(), *baselines()], chosen_on)
    references = [run for run in chosen_on if run.healthy and run.seed < 3]
    geometry = choose(geometry_warners(), chosen_on, held_out, is_quiet)
    geometry |= choose(reference_warners(references), chosen_on, held_out)
    today = choose(baselines(), chosen_on, held_out)
    default = shipped()
    often = rates_of(default, [run for run in fine if is_new(run.run)])
    drops = [warner for warner in geometry_warners() if warner.kind.startswith("drop from reference")]
    unknown = of_unknown_families(drops, chosen_on, held_out, is_quiet)
    ways = sorted(geometry.values(), key=merit, reverse=True)
    kinds = ("drop from reference", "cusum", "trend", "reference runs")
    best = [next(c for c in ways if c.warner.kind.startswith(kind)) for kind in kinds]
    votes = next(c for c in ways if "votes of" in c.warner.kind)
    shown = {c.warner.kind: c for c in (*ways[:8], *best, votes)}
    baseline = sorted(today.values(), key=merit, reverse=True)
    others = [c.warner for c in (*best, votes, *baseline) if not is_default(c.warner, default)]
    columns = {"default": default} | {warner.kind: warner for warner in others}
    page = [
        _head(runs, chosen_on, held_out),
        "## The notice of the default panel\n\n" + of_default(default, runs, often, unknown),
        "## Detectors on new seeds\n\nThe eight best on the runs that settings were chosen on, the best of each other "
        "detector, and the best with votes of several families of markers.\n\n" + table([*shown.values()]),
        "## What people use today, calibrated in the same way\n\n" + table(baseline),
        "## By family, on new seeds\n\n" + by_family(default, held_out),
        "## By family and way to warn, on new seeds\n\nFound of the runs whose truth falls; false alarms, including "
        "alarms before the onset, in brackets if there were any.\n\n" + by_family_and_way(columns, held_out),
        "## By the size of the fall, on new seeds\n\n" + by_fall(default, held_out),
        "## What stopping at the alarm would have bought, on new seeds\n\n" + stopping(default, today, held_out),
        "## Measured four times an epoch\n\n" + within_epochs(default, fine),
        "## Which votes are dependent, in healthy runs\n\n" + dependence.sentence(default, runs),
        "## Geometry and truth before and after the fault\n\n" + movements(runs),
    ]
    (options.output / "calibration.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    paces = {
        "the default, once an epoch": rates(outcomes(default, held_out)),
        "the default, four times an epoch": often,
    }
    picture(geometry, today, paces, options.output / "calibration.png")
    print("\n\n".join(page))


def merit(choice: Choice) -> tuple[float, ...]:
    """Order of the table: what was chosen on, never what is reported."""
    return preference(choice.chosen_on, choice.warner.caution)


def shipped() -> Warner:
    """What a monitor does by default."""
    panel = Panel().resolve(DEFAULT_WATCH)
    assert isinstance(panel.detector, IncrementalDetector)
    return panel_warner("default", panel.detector, panel.watch or (), panel.votes or 1)


def alarm_of_tool(run: Run) -> int | None:
    """Measurement of the first alarm of the default panel: what the tool calls an alarm, with sizes."""
    panel = Panel().resolve(DEFAULT_WATCH)
    return elsewhere.first(cached.Run(run.task, run.family, run.seed, run.onset, run.columns), panel)[1]


def is_default(warner: Warner, default: Warner) -> bool:
    """Whether a way among the others is the default itself, so that it needs no column of its own."""
    return warner.settings == default.settings and warner.kind.endswith(told_watch(DEFAULT_WATCH, VOTES))


def of_default(default: Warner, runs: Sequence[Run], often: Rates, unknown: Sequence[Outcome]) -> str:
    """The default where it was chosen and elsewhere."""
    chosen_on, held_out = chosen_and_new(runs)
    between = [run for run in runs if run.seed not in CHOSEN_SEEDS and not is_new(run)]
    parts = {
        "chosen on": rates(outcomes(default, chosen_on)),
        "looked at before the limits were chosen": rates(outcomes(default, between)),
        "**new seeds**": rates(outcomes(default, held_out)),
        "**new seeds, measured four times an epoch** (see below)": often,
        "new seeds of families that had no part in the choice": rates(unknown),
        "**the tool's alarm**, new seeds": rates(outcomes(Warner("alarm", "", alarm_of_tool), held_out)),
    }
    lines = [
        f"{VOTES} votes of the families {_families()}, each judged by `{default.settings}`: a family has half a vote "
        "at the first low measurement, and a whole one at the second in a row or at a measurement below `plain` times "
        "both thresholds. The dimension is expected to continue its fall (`follow_trend=True`).",
        "",
        f"| runs | {COLUMNS} |",
        "|---|" + "---|" * 5,
    ]
    lines += [f"| {name} | {cells(seen)} |" for name, seen in parts.items()]
    lines += [
        "",
        "The last but one row estimates the result for a fault that is not in the list: for each family of runs the "
        "setting, out of all sets of markers and settings of `DropFromReference`, is chosen on the other families "
        "alone.",
        "",
        "The default is not always the setting that the rule prefers, see the next table; `warnings.md` has the "
        "reasons.",
        "",
        "The largest possible median lead of alarms after the onset is "
        f"{number(largest_lead(outcomes(default, held_out)))} on the new seeds.",
    ]
    return "\n".join(lines)


def within_epochs(default: Warner, runs: Sequence[Fine]) -> str:
    """What more frequent measurements change, by settings of this pace: on what they were chosen on, and elsewhere."""
    seen = [run for run in runs if not is_new(run.run)]
    new = [run for run in runs if is_new(run.run)]
    ways = {"default": default} | choose_at_this_pace([*baselines(CHECKS)], seen)
    return "\n\n".join(
        [
            "Some of the same runs, measured four times an epoch: healthy ones, and those whose truth falls. The "
            "defaults are the same; the detectors read the number of measurements per epoch from the epochs, and "
            "account for it in ways that were decided on the earlier seeds. *Largest possible lead*: of an alarm at "
            "the first "
            "measurement with the fault.",
            "New seeds:",
            of_healthy(default, new),
            of_failing(default, new),
            "New seeds, by the series that is watched. The settings of what people use today were chosen on the "
            "earlier seeds at this pace, by the rule above.",
            by_way(ways, new),
            "Earlier seeds:",
            of_healthy(default, seen),
            of_failing(default, seen),
            by_way(ways, seen),
        ]
    )


def _head(runs: Sequence[Run], chosen_on: Sequence[Run], held_out: Sequence[Run]) -> str:
    falls = [truth_of(run) for run in runs if not run.healthy]
    return "\n".join(
        [
            "# Calibration of the warnings",
            "",
            "Made by `make bench-warning` from the runs in `benchmarks/early_warning/`.",
            "",
            "This page is about change beyond the noise, in three small tasks. What it calls an alarm of the default "
            "is a *notice* of the tool; an *alarm* of the tool also asks for sizes that were associated with harm, see "
            "[do the warnings carry over](carry_over.md), where runs are scored by their truth and on other tasks.",
            "",
            f"{len(runs)} runs: {sum(r.healthy for r in runs)} healthy ones and {len(falls)} with a fault, of which "
            f"the truth falls in {sum(t is not None and t.falls for t in falls)}. *Truth*: accuracy of a linear probe "
            "on classes that the network never saw. It falls if the mean of the last three epochs is below the mean "
            "of the three before the fault by 0.02 and by three standard errors. *Found*: an alarm after the onset "
            "in such a run. *Lead*: epochs from the alarm to the first measurement with half of the fall; negative "
            "for a late alarm. Intervals are 95 % (Wilson).",
            "",
            f"Settings were chosen on {len(chosen_on)} runs, seeds {CHOSEN_SEEDS[0]} to {CHOSEN_SEEDS[-1]} of every "
            "family: most found at no more than one false alarm in fifty runs, there and among "
            f"{SIMULATED:,} simulated healthy runs, which have more noise and drift (`simulated.py`; what people use "
            f"today is spared that). All tables are of {len(held_out)} runs, failing ones of seeds {NEW_SEEDS[0]} to "
            f"{NEW_SEEDS[-1]} and healthy ones of {NEW_HEALTHY_SEEDS[0]} to {NEW_HEALTHY_SEEDS[-1]}, which were opened "
            "after the first defaults had been committed; later changes (two votes, the sizes of alarms, from when on "
            "runs are judged) were made with all of these runs in view. The seeds in between were also examined before "
            "the limits of the default got their values (`warnings.md`); they are in the first table and in the last "
            "section only.",
            "",
            "Limits of the evidence: the networks are small. The families were made stronger after the truth of the "
            "first runs was examined. The sets of markers to try, and the number of measurements from which noise "
            "is estimated, were decided after all families of the seeds that settings were chosen on had been "
            "examined. In a sudden fault the truth falls with the first measurement after the onset: no warning can "
            "be early, and the largest possible lead is 0. *Lead if possible*: the median over the other runs.",
            "",
            "![Each way to warn: failing runs found against healthy runs with a false alarm](calibration.png)",
        ]
    )


def _families() -> str:
    """The watched markers, those of one kind joined."""
    families: dict[str, list[str]] = {}
    for name in DEFAULT_WATCH:
        families.setdefault(family_of(name), []).append(name)
    return ", ".join("/".join(names) for names in families.values())


if __name__ == "__main__":
    main()
