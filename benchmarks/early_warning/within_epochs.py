"""Some of the runs, measured four times an epoch: what the default does at that pace, and how sudden the faults are.

python -m benchmarks.early_warning.within_epochs      # seconds; trains nothing
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.early_warning.calibration import Rates, preference
from benchmarks.early_warning.families import FAILING
from benchmarks.early_warning.outcomes import TRUTH, Truth, truth_of
from benchmarks.early_warning.tables import COLUMNS, cells, number, share, short
from benchmarks.early_warning.trajectories import CHECKS, FOLDER, WITHIN, Run, load_runs
from benchmarks.early_warning.warners import Warner, judge_beforehand, series_of
from geomonitor.alarms.votes import enough_votes


class Fine(NamedTuple):
    """A run at both paces. Moments are in epochs: 7.25 is a quarter of an epoch after the end of epoch 7."""

    often: Run
    """measured four times an epoch"""
    run: Run
    """the same, at the end of each epoch"""

    @property
    def truth(self) -> Truth | None:
        """Whether the truth falls is told by the ends of epochs, as everywhere."""
        return truth_of(self.run)

    @property
    def falls(self) -> bool:
        """A failing run in which there is something to find."""
        return self.truth is not None and self.truth.falls

    @property
    def started(self) -> float:
        """The last moment before the fault."""
        return math.inf if self.run.onset is None or self.run.healthy else self.run.onset - 1

    @property
    def half(self) -> float:
        """The first moment at which half of the final drop is there; NaN where the truth does not fall."""
        truth, moments = self.truth, self.often.columns["epoch"]
        if truth is None or not truth.falls:
            return math.nan
        low = self.often.columns[TRUTH] <= (truth.before + truth.end) / 2
        return float(moments[low & (moments > self.started)][0])

    def alarm(self, warner: Warner) -> float:
        """Moment of the first alarm; NaN: none."""
        return self._moment(warner.first_alarm(self.often))

    def alarm_if_epochs_were_not_known(self, warner: Warner) -> float:
        """The same of what judges markers, where the detectors take each measurement for an epoch."""
        shares = []
        for marker, detector in warner.detectors.items():
            series = series_of(self.often, marker)
            shares.append(detector.shares(series._replace(epochs=np.full(len(series.epochs), math.nan))))
        (alarms,) = np.nonzero(enough_votes([*warner.detectors], shares, warner.votes))
        return self._moment(int(alarms[0]) if len(alarms) else None)

    def _moment(self, measurement: int | None) -> float:
        return math.nan if measurement is None else float(self.often.columns["epoch"][measurement])

    def truth_at(self, moment: float) -> float:
        """The truth at the latest measurement up to a moment; at the end of the run where there is none."""
        truth, moments = self.often.columns[TRUTH], self.often.columns["epoch"]
        return float(truth[-1] if math.isnan(moment) else truth[moments <= moment][-1])


def load_fine() -> list[Fine]:
    """All runs that were measured several times an epoch."""
    runs = {(run.family, run.task, run.seed): run for run in load_runs()}
    return [Fine(often, runs[often.family, often.task, often.seed]) for often in load_runs(FOLDER / WITHIN)]


def of_healthy(default: Warner, runs: Sequence[Fine]) -> str:
    """False alarms at both paces, before the fault, too."""
    seen = [run for run in runs if run.run.healthy]
    counts = {
        "once an epoch": [default.first_alarm(run.run) is not None for run in seen],
        "four times an epoch": [run.alarm(default) <= run.started for run in seen],
        "the same, if the epochs were not known": [
            run.alarm_if_epochs_were_not_known(default) <= run.started for run in seen
        ],
    }
    lines = ["| measured | healthy runs with an alarm |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {share(sum(alarms), len(alarms))} |" for name, alarms in counts.items()])


def of_failing(default: Warner, runs: Sequence[Fine]) -> str:
    """Found, and the lead, at both paces."""
    lines = [
        "| family | truth falls in | found once an epoch | found four times | lead once an epoch | lead four times "
        "| largest possible lead, four times |",
        "|---|---|---|---|---|---|---|",
    ]
    falling = [run for run in runs if run.falls]
    for family in (*FAILING, "all"):
        seen = [run for run in falling if family in (run.run.family, "all")]
        if not seen:
            continue
        slow = [math.nan if (alarm := default.first_alarm(run.run)) is None else alarm for run in seen]
        fast = [run.alarm(default) for run in seen]
        slow_leads = [run.truth.half - a for run, a in zip(seen, slow, strict=True) if a > run.started]
        fast_leads = [run.half - a for run, a in zip(seen, fast, strict=True) if a > run.started]
        largest = [run.half - (run.started + 1 / CHECKS) for run in seen]
        lines.append(
            f"| {family} | {len(seen)} | {len(slow_leads)} | {len(fast_leads)} | {_median(slow_leads)} "
            f"| {_median(fast_leads)} | {_median(largest)} |"
        )
    return "\n".join(lines)


def rates_of(warner: Warner, runs: Sequence[Fine]) -> Rates:
    """What a way to warn does at this pace."""
    falling = [run for run in runs if run.falls]
    healthy = [run for run in runs if run.run.healthy]
    alarms = [run.alarm(warner) for run in falling]
    leads = [(run, run.half - a) for run, a in zip(falling, alarms, strict=True) if a > run.started]
    slow = [lead for run, lead in leads if run.half > run.started + 1 / CHECKS]
    return Rates(
        found=len(leads),
        failing=len(falling),
        false=sum(not math.isnan(run.alarm(warner)) for run in healthy),
        healthy=len(healthy),
        early=sum(a <= run.started for run, a in zip(falling, alarms, strict=True)),
        started=len(falling),
        lead=float(np.median([lead for _, lead in leads])) if leads else math.nan,
        slow_lead=float(np.median(slow)) if slow else math.nan,
    )


def choose_at_this_pace(warners: Sequence[Warner], runs: Sequence[Fine]) -> dict[str, Warner]:
    """The best setting of each kind of warner, see :func:`calibration.preference`."""
    judge_beforehand(warners, [run.often for run in runs])
    best: dict[str, tuple[tuple[float, ...], Warner]] = {}
    for warner in warners:
        merit = preference(rates_of(warner, runs), warner.caution)
        if warner.kind not in best or merit > best[warner.kind][0]:
            best[warner.kind] = merit, warner
    return {kind: warner for kind, (_, warner) in sorted(best.items(), key=lambda item: item[1][0], reverse=True)}


def by_way(ways: Mapping[str, Warner], runs: Sequence[Fine]) -> str:
    """Found, false alarms and lead of each way to warn, and what stopping would have bought."""
    lines = [
        f"| warns by | setting | {COLUMNS} | truth at the alarm | at the checkpoint to keep | at the end |",
        "|---|" + "---|" * 9,
    ]
    falling = [run for run in runs if run.falls]
    for name, warner in ways.items():
        alarms = [run.alarm(warner) for run in falling]
        at, before, end = (
            float(np.mean([run.truth_at(a - back) for run, a in zip(falling, moments, strict=True)]))
            for moments, back in ((alarms, 0), (alarms, warner.back / CHECKS), ([math.nan] * len(alarms), 0))
        )
        lines.append(
            f"| {name} | `{short(warner.settings)}` | {cells(rates_of(warner, runs))} "
            f"| {at:.3f} | {before:.3f} | {end:.3f} |"
        )
    return "\n".join(lines)


def _median(leads: Sequence[float]) -> str:
    return number(float(np.median(leads))) if leads else "-"


def main() -> None:
    """Prints the tables of this pace."""
    from benchmarks.early_warning.report import shipped

    runs = load_fine()
    print(of_healthy(shipped(), runs), of_failing(shipped(), runs), sep="\n\n")


if __name__ == "__main__":
    main()
