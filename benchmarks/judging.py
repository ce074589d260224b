"""What judging costs: time for each measurement of one layer by the default panel, however long the run is.

OMP_NUM_THREADS=1 python -m benchmarks.judging            # seconds
OMP_NUM_THREADS=1 python -m benchmarks.judging --runs     # minutes; checks online verdicts on all cached runs
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_warning.trajectories import Run, load_runs
from benchmarks.early_warning.warners import history_of
from benchmarks.early_warning.within_epochs import load_fine
from geomonitor import History
from geomonitor.alarms.judge import Judge, Values, judge_history, replay
from geomonitor.alarms.panel import DEFAULT_WATCH, Panel

LAYER = "penultimate"
LENGTHS = (10, 100, 1_000, 10_000)
TIMED = 30
"""Measurements whose median time counts."""
ERROR = 0.01
"""Relative standard error of each measurement, and of each change."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", action="store_true", help="compare online verdicts and replay on all cached runs")
    if parser.parse_args().runs:
        runs = [*load_runs(), *(fine.often for fine in load_fine())]
        found = list(differences(runs))
        print(f"{len(runs)} runs, {len(found)} with a difference", *found, sep="\n")
        return
    print("| measurements so far | ms a measurement, healthy | ms a measurement, in a lasting decline |\n|---|---|---|")
    for length in LENGTHS:
        print(f"| {length:,} | {cost(length, 1.0):.2f} | {cost(length, 0.5):.2f} |", flush=True)


def cost(length: int, factor: float) -> float:
    """Median processor time of a verdict, in ms, after so many measurements, which fall by ``factor`` early."""
    judge = Judge(Panel().resolve(DEFAULT_WATCH))
    times = []
    for step, values in itertools.islice(measurements(factor, length + TIMED), length + TIMED):
        started = time.process_time()
        judge.update(LAYER, step, step, values)
        times.append(time.process_time() - started)
    return 1e3 * statistics.median(times[-TIMED:])


def measurements(factor: float, count: int) -> Iterator[tuple[int, Values]]:
    """Steps and values of the watched markers: level 2 with noise, times ``factor`` from the tenth measurement on."""
    draw = np.random.default_rng(0)
    for step in range(count):
        level = 2 * (factor if step >= min(10, count // 2) else 1.0)
        yield step, {name: (_noisy(draw, level), ERROR * level, ERROR * level) for name in DEFAULT_WATCH}


def _noisy(draw: np.random.Generator, level: float) -> float:
    return float(level * (1 + ERROR * draw.standard_normal()))


def differences(runs: Iterable[Run]) -> Iterator[str]:
    """Runs in which the verdicts of a judge that sees one measurement after the other are not those of a saved run.

    The state of the judge goes through JSON once. Compared, to the digit: the alarms of a replay, and the verdict that
    a judge forms at once from half of the history and from the whole of it.
    """
    panel = Panel().resolve(DEFAULT_WATCH)
    for run in runs:
        history = history_of(run, DEFAULT_WATCH)
        series = {marker: history.series(LAYER, marker) for marker in DEFAULT_WATCH}
        steps, judge, online = run.columns["step"].astype(np.int64).tolist(), Judge(panel), []
        half = len(steps) // 2
        for place, step in enumerate(steps):
            values = {m: _at(place, s.values, s.standard_errors, s.change_errors) for m, s in series.items()}
            epoch = int(series[DEFAULT_WATCH[0]].epochs[place])
            online.append(judge.update(LAYER, step, epoch, values))
            if place == half:
                judge.load_state_dict(json.loads(json.dumps(judge.state_dict())), History())
        turns = [n for n, v in enumerate(online) if v.declined != (n > 0 and online[n - 1].declined)]
        alarms = replay(history, LAYER, panel)
        ends = [step for alarm in alarms for step in (alarm.step, alarm.end_step) if step is not None]
        verdicts = [alarm.verdict for alarm in alarms]
        early = History(record for record in history if record.step <= steps[half])
        if (
            ends != [steps[n] for n in turns]
            or repr(verdicts) != repr([online[n] for n in turns if online[n].declined])
            or repr(judge_history(early, LAYER, panel)) != repr(online[half])  # repr: NaN is equal to itself
            or repr(judge_history(history, LAYER, panel)) != repr(online[-1])
        ):
            yield f"{run.family} {run.task} {run.seed}"


def _at(place: int, *columns: NDArray[np.float64] | None) -> tuple[float, float, float]:
    value, error, change = (math.nan if column is None else float(column[place]) for column in columns)
    return value, error, change


if __name__ == "__main__":
    main()
