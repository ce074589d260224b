"""How the default panel warns on eight tasks: three it was calibrated on before, five new ones; docs/carry_over.md.

OMP_NUM_THREADS=1 python -m benchmarks.elsewhere.report            # prints the tables; two minutes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

from benchmarks.early_warning.calibration import wilson
from benchmarks.early_warning.trajectories import CHECKS, FOLDER, WITHIN, load_runs
from benchmarks.elsewhere.harm import Harm, harm_of
from benchmarks.elsewhere.recipes import PLAIN, PLANNED
from benchmarks.elsewhere.runs import FRESH, FRESH_OLD, LATER, TUNED, Run, load
from geomonitor import DropFromReference, Panel
from geomonitor.alarms.harm import Rate
from geomonitor.alarms.judge import Judge
from geomonitor.alarms.panel import DEFAULT_WATCH
from geomonitor.alarms.verdict import Verdict

LATE = 3
"""Measurements after half of the harm at which an alarm still counts as in time."""
BASE_RATES = (0.05, 0.2)
AN_EPOCH = 4
"""Measurements of an epoch of the fine-tuning runs."""


_TITLES = (
    *("", "found, of all harm", "of harm >= 0.1", "alarm, of all runs without harm", "lead"),
    *("likelihood ratio", *(f"precision at {base:.0%}" for base in BASE_RATES)),
)
HEAD = ("| " + " | ".join(_TITLES) + " |", "|" + "---|" * len(_TITLES))
"""Of the table, in Markdown."""


class Outcome(NamedTuple):
    """What the panel did in a run."""

    run: Run
    harm: Harm | None
    notice: int | None
    """measurement of the first one"""
    alarm: int | None
    announced: int | None
    """measurement of the first alarm if planned changes are announced"""


def outcome(run: Run, panel: Panel | None = None, an_epoch: int = 1) -> Outcome:
    """Judge a run as it was trained, and, if its change was planned, once more with an announcement.

    Args:
        run: measured ``an_epoch`` times an epoch.
        panel: what it leaves open is filled in; None: the default one.
        an_epoch: measurements of an epoch.
    """
    panel = (panel or Panel()).resolve(DEFAULT_WATCH)
    notice, alarm = first(run, panel, an_epoch=an_epoch)
    planned = run.family in PLANNED and run.onset is not None
    announced = first(run, panel, restart=run.onset)[1] if planned else alarm
    return Outcome(run, harm_of(run.columns), notice, alarm, announced)


def first(run: Run, panel: Panel, restart: int | None = None, an_epoch: int = 1) -> tuple[int | None, int | None]:
    """First notice and first alarm; follow-up measurements where the run has them."""
    notice = alarm = None
    for step, verdict in verdicts(run, panel, restart, an_epoch):
        check, follow_up = divmod(step, 2)
        notice = check if notice is None and verdict.noticed and not follow_up else notice
        alarm = check if alarm is None and verdict.declined else alarm
        if notice is not None and alarm is not None:
            break
    return notice, alarm


def verdicts(run: Run, panel: Panel, restart: int | None = None, an_epoch: int = 1) -> Iterator[tuple[int, Verdict]]:
    """Step and verdict of each measurement: number ``check`` is step ``2 * check``, its follow-up the odd one after.

    Args:
        run: what was measured.
        panel: that judges.
        restart: measurement after which a planned change is announced.
        an_epoch: measurements of an epoch.
    """
    judge = Judge(panel)
    watched = [name for name in panel.watch or () if name in run.columns]
    followed = [name for name in watched if f"later_{name}" in run.columns]
    for check in range(len(run.columns["unseen_accuracy"])):
        if restart is not None and check == restart + 1:
            judge.restart(["features"])
        values = {name: _value(run, name, check) for name in watched}
        verdict = judge.update("features", 2 * check, check // an_epoch, values)
        yield 2 * check, verdict
        later = {name: float(run.columns[f"later_{name}"][check]) for name in followed}
        if verdict.pending and any(math.isfinite(value) for value in later.values()):
            again = {name: (value, math.nan, math.nan) for name, value in later.items()}
            yield 2 * check + 1, judge.update("features", 2 * check + 1, check // an_epoch, again)


def _value(run: Run, name: str, check: int) -> tuple[float, float, float]:
    """Value, standard error and error of the change; NaN where a run does not have them."""
    columns = (name, f"{name}_standard_error", f"{name}_change_error")
    value, error, change = (float(run.columns[c][check]) if c in run.columns else math.nan for c in columns)
    return value, error, change


def single(name: str, worse: str, drop: float) -> Callable[[Run], int | None]:
    """What people use today, judged alike: one number that is worse by ``drop`` at two measurements in a row."""
    panel = Panel((name,), DropFromReference(drop=drop, sigmas=1.75, worse=worse))  # type: ignore[arg-type]
    return lambda run: first(run, panel)[1]


def in_time(harm: Harm, alarm: int | None, an_epoch: int = 1) -> bool:
    """Whether an alarm came no later than three measurements, or as many epochs, after half of the harm."""
    return alarm is not None and alarm <= harm.half + LATE * an_epoch


def share(found: int, of: int) -> str:
    """A count with its 95 % interval."""
    low, high = wilson(found, of)
    return f"{found} of {of} ({100 * low:.0f}-{100 * high:.0f} %)"


def ratio_of(found: int, harmed: int, false: int, fine: int) -> tuple[float, float, float]:
    """Likelihood ratio of an alarm and its 95 % interval (Katz et al. 1978); no false alarm counts as half a one.

    >>> [round(value, 1) for value in ratio_of(20, 40, 10, 200)]
    [10.0, 5.1, 19.7]
    """
    kept = max(false, 0.5)
    ratio = found / harmed / (kept / fine)
    spread = math.exp(1.96 * math.sqrt(1 / found - 1 / harmed + 1 / kept - 1 / fine))
    return ratio, ratio / spread, ratio * spread


def precision(base: float, ratio: float) -> float:
    """Share of alarms with harm if a share of all runs is harmed."""
    return base * ratio / (base * ratio + 1 - base)


def lead_of(leads: Sequence[float]) -> str:
    """Median time from an alarm to half of the harm, with a 95 % interval by resampling runs."""
    draw = np.random.default_rng(0)
    medians = np.median(draw.choice(np.array(leads), (1_000, len(leads))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return f"{np.median(leads):+.1f} ({low:+.1f} to {high:+.1f})"


def row(title: str, outcomes: Sequence[Outcome], alarm: Callable[[Outcome], int | None], an_epoch: int = 1) -> str:
    """A line of the table."""
    harmed = [o for o in outcomes if o.harm is not None]
    large = [o for o in harmed if o.harm and o.harm.depth >= 0.1]
    fine = [o for o in outcomes if o.harm is None]
    leads = [o.harm.half - (alarm(o) or 0) for o in harmed if o.harm and in_time(o.harm, alarm(o), an_epoch)]
    found_large = sum(in_time(o.harm, alarm(o), an_epoch) for o in large if o.harm)
    false = sum(alarm(o) is not None for o in fine)
    cells = [title, share(len(leads), len(harmed)), share(found_large, len(large)), share(false, len(fine))]
    if not leads:
        return "| " + " | ".join([*cells, "-", "-", *("-" for _ in BASE_RATES)]) + " |"
    ratio, low, high = ratio_of(len(leads), len(harmed), false, len(fine))
    cells += [lead_of(leads), f"{ratio:.1f} ({low:.1f}-{high:.0f})"]
    for base in BASE_RATES:
        cells.append(f"{precision(base, ratio):.0%} ({100 * precision(base, low):.0f}-{precision(base, high):.0%})")
    return "| " + " | ".join(cells) + " |"


def all_runs() -> list[Run]:
    """The runs of both benches."""
    old = [Run(r.task, r.family, r.seed, r.onset, r.columns) for r in load_runs()]
    return [*old, *load()]


def often(run: Run) -> Outcome:
    """A run that was measured four times an epoch."""
    return outcome(run, an_epoch=CHECKS)


def tuned(run: Run) -> Outcome:
    """A run that begins with pretrained weights, and whose panel knows it."""
    return outcome(run, Panel(pretrained=True), AN_EPOCH)


def in_epochs(run: Run) -> Outcome:
    """A fine-tuning run, with the default panel."""
    return outcome(run, an_epoch=AN_EPOCH)


def cheap(run: Run) -> Outcome:
    """A run whose panel has no marker that needs the dual problem to be solved."""
    return outcome(run, Panel().resolve([name for name in DEFAULT_WATCH if name not in ("dimension", "capacity")]))


def rates(outcomes: Sequence[Outcome]) -> dict[str, Rate]:
    """Harmed runs of those with an alarm (in time), of those with a notice alone, and of those with neither."""
    alarmed = [o for o in outcomes if o.alarm is not None]
    noticed = [o for o in outcomes if o.alarm is None and o.notice is not None]
    silent = [o for o in outcomes if o.alarm is None and o.notice is None]
    return {
        "alarm": Rate(sum(o.harm is not None and in_time(o.harm, o.alarm) for o in alarmed), len(alarmed)),
        "notice": Rate(sum(o.harm is not None for o in noticed), len(noticed)),
        "neither": Rate(sum(o.harm is not None for o in silent), len(silent)),
    }


def fresh_runs() -> list[Run]:
    """Runs of seeds that no setting has seen, of all nine tasks."""
    old = [Run(r.task, r.family, r.seed, r.onset, r.columns) for r in load_runs(FRESH_OLD)]
    return [*load(FRESH), *old]


def measured_often() -> list[Run]:
    """The old runs that were measured four times an epoch."""
    return [Run(r.task, r.family, r.seed, r.onset, r.columns) for r in load_runs(FOLDER / WITHIN)]


def main() -> None:
    """Print the tables."""
    runs = all_runs()
    with ProcessPoolExecutor() as pool:
        outcomes = list(pool.map(outcome, runs, chunksize=32))
        cheaper = list(pool.map(cheap, runs, chunksize=32))
        finer = list(pool.map(often, measured_often(), chunksize=32))
        pretrained = list(pool.map(tuned, [run for run in runs if run.task == "minilm"]))
    new = [o for o in outcomes if "plateau" in o.run.columns]
    old = [o for o in outcomes if "plateau" not in o.run.columns]
    print("\n".join(HEAD))
    print(row("**alarm, five new tasks**", new, lambda o: o.alarm))
    print(row("the same, planned changes announced", new, lambda o: o.announced))
    for task in sorted({o.run.task for o in new}):
        print(row(task, [o for o in new if o.run.task == task], lambda o: o.alarm))
    print(row("**alarm, three old tasks**", old, lambda o: o.alarm))
    print(row("**alarm, all**", outcomes, lambda o: o.alarm))
    print(row("alarm without dimension and capacity, all", cheaper, lambda o: o.alarm))
    part = [o for o in cheaper if "plateau" in o.run.columns]
    print(row("alarm without dimension and capacity, five new tasks", part, lambda o: o.alarm))
    print(row("alarm, three old tasks, measured four times an epoch", finer, lambda o: o.alarm, CHECKS))
    print(row("minilm, `pretrained=True`", pretrained, lambda o: o.alarm, AN_EPOCH))
    print(row("notice, five new tasks", new, lambda o: o.notice))
    print(row("notice, all", outcomes, lambda o: o.notice))
    for name, worse, drops in (("rankme", "lower", (0.2, 0.4, 0.6)), ("val_loss", "higher", (0.4, 0.6, 0.7)),
                               ("val_accuracy", "lower", (0.05, 0.1, 0.15))):  # fmt: skip
        for drop in drops:
            alarms = {id(o): single(name, worse, drop)(o.run) for o in new}
            print(row(f"{name} worse by {drop:.0%}, new tasks", new, lambda o, alarms=alarms: alarms[id(o)]))
    truths = {id(o): single("unseen_accuracy", "lower", 0.03)(o.run) for o in outcomes}
    print(row("transfer itself worse by 3% (`TransferProbe`), all", outcomes, lambda o: truths[id(o)]))
    confirmed = {id(o): o.alarm if truths[id(o)] is not None else None for o in outcomes}
    print(row("alarm, and transfer itself worse by 3%, all", outcomes, lambda o: confirmed[id(o)]))
    later = [outcome(run) for run in load(LATER)]
    print(row("**alarm, a task opened after all settings (`bags`)**", later, lambda o: o.alarm))
    print(row("notice, `bags`", later, lambda o: o.notice))
    alarms = {id(o): single("rankme", "lower", 0.4)(o.run) for o in later}
    print(row("rankme worse by 40%, `bags`", later, lambda o: alarms[id(o)]))
    with ProcessPoolExecutor() as pool:
        fresh = list(pool.map(outcome, fresh_runs(), chunksize=8))
        bare = list(pool.map(cheap, fresh_runs(), chunksize=8))
    print(row("**alarm, new seeds of all nine tasks, opened after all settings**", fresh, lambda o: o.alarm))
    print(row("the same, planned changes announced", fresh, lambda o: o.announced))
    print(row("the same, without dimension and capacity", bare, lambda o: o.alarm))
    print(row("notice, new seeds", fresh, lambda o: o.notice))
    for name, worse, drop in (("rankme", "lower", 0.4), ("val_loss", "higher", 0.7), ("val_accuracy", "lower", 0.15)):
        alarms = {id(o): single(name, worse, drop)(o.run) for o in fresh}
        print(row(f"{name} worse by {drop:.0%}, new seeds", fresh, lambda o, alarms=alarms: alarms[id(o)]))
    second, third = ([judged(run) for run in load(TUNED)] for judged in (in_epochs, tuned))
    print(row("**alarm, a second task with pretrained weights (`lite`)**", second, lambda o: o.alarm, AN_EPOCH))
    print(row("notice, `lite`", second, lambda o: o.notice, AN_EPOCH))
    print(row("`lite`, `pretrained=True`", third, lambda o: o.alarm, AN_EPOCH))
    print(row("notice, `lite`, `pretrained=True`", third, lambda o: o.notice, AN_EPOCH))
    alarms = {id(o): single("val_loss", "higher", 0.7)(o.run) for o in second}
    print(row("val_loss worse by 70%, `lite`", second, lambda o: alarms[id(o)], AN_EPOCH))
    kinds: Iterable[tuple[str, Sequence[str] | None]] = (
        ("nothing changes", PLAIN),
        ("planned", PLANNED),
        ("faults", None),
    )
    for kind, families in kinds:
        part = [o for o in new if (o.run.family in families if families else o.run.family not in (*PLAIN, *PLANNED))]
        fine = [o for o in part if o.harm is None]
        print(f"new tasks, {kind}: alarms {share(sum(o.alarm is not None for o in fine), len(fine))}, announced "
              f"{share(sum(o.announced is not None for o in fine), len(fine))}, notices "
              f"{share(sum(o.notice is not None for o in fine), len(fine))}")  # fmt: skip
    for title, part in (("all", outcomes), ("new tasks", new), ("new seeds", fresh)):
        for kind, (harmed, raised) in rates(part).items():
            print(f"{title}: of runs with {kind}, harmed: {share(harmed, raised)}")


if __name__ == "__main__":
    main()
