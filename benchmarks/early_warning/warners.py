"""Everything that can give the first alarm of a run: detectors on markers, and what people use today."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_warning.trajectories import Run
from geomonitor import Cusum, DropFromReference, History, Record, ReferenceRuns, Series, Trend
from geomonitor.alarms.detectors import AgreeingDrop, IncrementalDetector
from geomonitor.alarms.detectors.incremental import measurements
from geomonitor.alarms.detectors.levels import Worse
from geomonitor.alarms.panel import AGREEING, VOTES
from geomonitor.alarms.votes import enough_votes


@dataclass(frozen=True)
class Warner:
    """A way to warn, with its settings."""

    kind: str
    """name of the way, for the table; the settings of one kind compete in the calibration"""
    settings: str
    first_alarm: Callable[[Run], int | None]
    """measurement of the first alarm in a run, from 0: the epoch, where each has one"""
    caution: float = 0.0
    """among equals the most cautious setting is taken"""
    detectors: Mapping[str, IncrementalDetector] = dataclasses.field(default_factory=dict)
    """of each watched marker; empty where no markers of a run by itself are judged"""
    votes: float = 1
    back: int = 1
    """measurements from the alarm back to the checkpoint that is worth keeping"""


CLASS_SPECTRUM = "participation_ratio_per_class"
WATCHES: tuple[tuple[tuple[str, ...], float], ...] = (
    *(((name,), 1) for name in ("dimension", "capacity", "numerical_rank", "cdnv", CLASS_SPECTRUM, "mean_norm")),
    (("dimension", CLASS_SPECTRUM), 1),
    (("dimension", "numerical_rank"), 1),
    (("dimension", "numerical_rank", "cdnv"), 1),
    (("dimension", "numerical_rank", "cdnv", "mean_norm"), 1),
    (("dimension", "numerical_rank", "cdnv"), VOTES),
    (("dimension", "numerical_rank", "cdnv", CLASS_SPECTRUM, "mean_norm"), VOTES),
    (("dimension", "capacity", "numerical_rank", "cdnv", "mean_norm"), VOTES),
    (("dimension", "capacity", "numerical_rank", "cdnv", CLASS_SPECTRUM, "mean_norm"), VOTES),
    (("dimension", "capacity", "numerical_rank", "cdnv", "mean_norm", "accuracy"), VOTES),
    (("dimension", "capacity", "numerical_rank", "cdnv", CLASS_SPECTRUM, "mean_norm", "accuracy"), VOTES),
    (("dimension", "capacity", "numerical_rank", "cdnv", CLASS_SPECTRUM, "mean_norm", "accuracy"), 2),
    (("capacity", "numerical_rank", "cdnv", CLASS_SPECTRUM, "mean_norm", "accuracy"), VOTES),
)
"""Watched markers and votes."""
REFERENCE_WATCHES = (("dimension",), (CLASS_SPECTRUM,), ("dimension", "numerical_rank", "cdnv"))


def detectors() -> Iterator[tuple[str, IncrementalDetector, float]]:
    """Settings of each detector: its name, itself, and how cautious it is."""
    for detector, caution in drops():
        yield "drop from reference", detector, caution
    for threshold, drop, trend, noise in itertools.product((4.0, 8.0), (0.05, 0.1, 0.15), (False, True), (0.02, 0.04)):
        cusum = Cusum(threshold=threshold, drop=drop, follow_trend=trend, least_noise=noise)
        yield "cusum", cusum, drop + threshold / 100
    for window, drop, steeper in itertools.product((4, 6), (0.05, 0.1, 0.2), (1.5, 3.0)):
        yield "trend", Trend(window=window, drop=drop, steeper=steeper), drop + steeper / 100


def drops(
    sizes: Sequence[float] = (0.02, 0.025, 0.05, 0.1), worse: Worse = "marker"
) -> Iterator[tuple[DropFromReference, float]]:
    """Settings of the drop from a reference, and how cautious each is."""
    for drop, sigmas, patience, trend in itertools.product(sizes, (1.75, 2.0, 3.0), (1, 2), (False, True)):
        detector = DropFromReference(
            drop=drop, sigmas=sigmas, patience_checks=patience, follow_trend=trend, worse=worse
        )
        yield detector, drop + patience / 100


def geometry_warners() -> Iterator[Warner]:
    """Every detector with every set of watched markers."""
    for (name, detector, caution), (watch, votes) in itertools.product(detectors(), WATCHES):
        if votes > 1 and isinstance(detector, DropFromReference):
            detector = AgreeingDrop(**dataclasses.asdict(detector) | {"plain": AGREEING.plain})  # noqa: PLW2901
        yield panel_warner(f"{name}: {told_watch(watch, votes)}", detector, watch, votes, caution)


def panel_warner(
    kind: str, detector: IncrementalDetector, watch: Sequence[str], votes: float, caution: float = 0.0
) -> Warner:
    """Some markers, each judged by the same detector."""
    alarm = functools.partial(first_alarm, dict.fromkeys(watch, detector), votes)
    return Warner(kind, repr(detector), alarm, caution, dict.fromkeys(watch, detector), votes)


def told_watch(watch: Sequence[str], votes: float) -> str:
    """Watched markers and votes in words."""
    return f"{votes:g} votes of {', '.join(watch)}" if votes > 1 else ", ".join(watch)


def reference_warners(references: Sequence[Run]) -> Iterator[Warner]:
    """The band of healthy runs of the same task; a run is never its own reference."""
    for watch in REFERENCE_WATCHES:
        for coverage, least in itertools.product((0.99, 0.9999), (0.05, 0.25)):
            alarm = functools.partial(_outside_band, tuple(references), watch, coverage, least)
            settings = f"{coverage=}, least_change={least}, patience_checks=1"
            yield Warner(f"reference runs: {', '.join(watch)}", settings, alarm, coverage + least)


def baselines(checks: int = 1) -> Iterator[Warner]:
    """What people use today, each with its usual settings, at so many measurements an epoch."""
    for epochs, least in itertools.product((3, 5, 8, 10, 12, 15), (0.0, 0.001)):
        patience = checks * epochs
        for column, sign in (("val_loss", 1), ("val_accuracy", -1)):
            alarm = functools.partial(_stops_improving, column, sign, patience, least)
            settings = f"{patience=}, min_delta={least}"
            yield Warner(f"EarlyStopping on {column}", settings, alarm, patience + least, back=patience)
    for name, column, worse in (
        ("RankMe falls", "rankme", "lower"),
        ("NC1 falls", "nc1", "lower"),
        ("NC1 rises", "nc1", "higher"),
        ("validation accuracy falls", "val_accuracy", "lower"),
        ("validation loss rises", "val_loss", "higher"),
    ):
        for detector, caution in drops((0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4), worse):  # type: ignore[arg-type]
            yield panel_warner(name, detector, (column,), 1, caution)
    for factor in (1.5, 2.0, 3.0, 5.0, 10.0):
        alarm = functools.partial(_spike, factor)
        yield Warner("training-loss spike", f"{factor=}", alarm, factor)


def series_of(run: Run, marker: str) -> Series:
    """A cached column as the series that a detector sees."""
    values = run.columns[marker]
    unknown = np.full(len(values), np.nan)
    return Series(
        "penultimate",
        marker,
        run.columns["step"].astype(np.int64),
        np.ceil(run.columns["epoch"]),  # within an epoch the columns have fractions
        values,
        run.columns.get(f"{marker}_standard_error", unknown),
        run.columns.get(f"{marker}_change_error", unknown),
    )


def history_of(run: Run, markers: Sequence[str]) -> History:
    """A cached run as a history."""
    return History(
        Record(m.step, int(m.epoch), "penultimate", marker, m.value, m.standard_error, change_error=m.change_error)
        for marker in markers
        for m in measurements(series_of(run, marker))
    )


Judged = tuple[str, str, str, str, int, int]
_SHARES: dict[Judged, NDArray[np.float64]] = {}


def shares_of(detector: IncrementalDetector, run: Run, marker: str) -> NDArray[np.float64]:
    """``Verdict.share`` of a marker after each measurement of a run; judged once."""
    key = (repr(detector), marker, run.family, run.task, run.seed, len(run.columns["step"]))
    if key not in _SHARES:
        _SHARES[key] = detector.shares(series_of(run, marker))
    return _SHARES[key]


def judge_beforehand(warners: Iterable[Warner], runs: Sequence[Run]) -> None:
    """Judge the runs by every detector of the warners, on all cores; then their first alarms are found at once."""
    pairs = list({(repr(d), marker): (d, marker) for w in warners for marker, d in w.detectors.items()}.values())
    with ProcessPoolExecutor(initializer=_RUNS.extend, initargs=(runs,)) as pool:
        for shares in pool.map(_judge_all, pairs):
            _SHARES.update(shares)


_RUNS: list[Run] = []
"""Of a process that judges beforehand."""


def _judge_all(pair: tuple[IncrementalDetector, str]) -> dict[Judged, NDArray[np.float64]]:
    _SHARES.clear()
    for run in _RUNS:
        shares_of(pair[0], run, pair[1])
    return dict(_SHARES)


def first_alarm(detectors: Mapping[str, IncrementalDetector], votes: float, run: Run) -> int | None:
    """First measurement at which the markers, each judged by its own detector, have ``votes`` votes."""
    shares = [shares_of(detector, run, marker) for marker, detector in detectors.items()]
    return _first(enough_votes([*detectors], shares, votes))


def _outside_band(
    references: tuple[Run, ...], watch: tuple[str, ...], coverage: float, least: float, run: Run
) -> int | None:
    same = (run.task, run.seed, run.family)
    others = [r for r in references if r.task == run.task and (r.task, r.seed, r.family) != same]
    shares = []
    for marker in watch:
        histories = [_reference(other, marker) for other in others]
        detector = ReferenceRuns(histories, coverage=coverage, least_change=least, patience_checks=1)
        shares.append(detector.shares(series_of(run, marker)))
    return _first(enough_votes(watch, shares, 1))


_REFERENCES: dict[tuple[str, str, int, str], History] = {}


def _reference(run: Run, marker: str) -> History:
    key = (run.family, run.task, run.seed, marker)
    if key not in _REFERENCES:
        _REFERENCES[key] = history_of(run, [marker])
    return _REFERENCES[key]


def _stops_improving(column: str, sign: int, patience: int, least: float, run: Run) -> int | None:
    """Lightning's EarlyStopping: no improvement for ``patience`` measurements in a row."""
    best, waited = np.inf, 0
    for now, value in enumerate(sign * run.columns[column]):
        best, waited = (value, 0) if value < best - least else (best, waited + 1)
        if waited >= patience:
            return now
    return None


def _spike(factor: float, run: Run) -> int | None:
    losses = run.columns["max_batch_loss"]
    for now in range(5, len(losses)):
        if not losses[now] <= factor * np.median(losses[now - 5 : now]):
            return now
    return None


def _first(declined: NDArray[np.bool_]) -> int | None:
    (places,) = np.nonzero(declined)
    return int(places[0]) if len(places) else None
