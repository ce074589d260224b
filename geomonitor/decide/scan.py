"""Measure saved checkpoints as if a monitor had watched the training: the history equals that of the run itself."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geomonitor._warnings import WarnOnce
from geomonitor.alarms.live import LiveJudge
from geomonitor.alarms.verdict import Verdict
from geomonitor.decide.checkpoints import Checkpoint, load_checkpoint, load_weights
from geomonitor.decide.exchange import Exchange
from geomonitor.errors import GeomonitorWarning, InputError, MeasurementError
from geomonitor.history.history import History
from geomonitor.history.records import Record
from geomonitor.monitor import GeometryMonitor


class SeveralRunsError(InputError):
    """Checkpoints of one step have other weights."""


class Moment(NamedTuple):
    """A checkpoint to measure, and when in training that is."""

    path: str
    step: int
    epoch: int | None


def moments(paths: Sequence[str]) -> list[Moment]:
    """Put checkpoints in the order of training.

    Args:
        paths: checkpoint files, in any order.

    Returns:
        Each once, by step. A second checkpoint of a step with the same weights (the ``last.ckpt`` beside
        ``epoch=9.ckpt``) is left out with a warning. If no file has a step, the epoch replaces it, or else the place in
        ``paths``.

    Raises:
        InputError: no files, a file that cannot be read, steps that only some files have, or other weights of one step:
            see :func:`runs_of`.
    """
    if not paths:
        raise InputError("no checkpoints given: name .ckpt, .pt or .safetensors files")
    found = [(path, *load_checkpoint(path)[2:]) for path in paths]
    given = {"step": [path for path, step, _ in found if step is not None],
            "epoch": [path for path, _, epoch in found if epoch is not None]}  # fmt: skip
    clock = next((name for name in ("step", "epoch") if given[name]), None)
    if clock and len(given[clock]) < len(found):
        silent = next(path for path, *_ in found if path not in given[clock])
        raise InputError(f"{silent} has no {clock}, others have one: rename it to something like step_1000.pt")
    if clock != "step":
        warnings.warn(
            f"no checkpoint has its step: {clock or 'the order in which they are given'} stands in for it",
            GeomonitorWarning,
            stacklevel=2,
        )
    ordered: dict[int, Moment] = {}
    for place, (path, step, epoch) in enumerate(found):
        when = {"step": step, "epoch": epoch}.get(clock or "", place)
        assert when is not None  # of the chosen clock, all have one
        if when in ordered:
            if not same_weights(ordered[when].path, path):
                raise SeveralRunsError(
                    f"{path} and {ordered[when].path} have other weights of one step, {when}: they are of two runs"
                )
            warnings.warn(f"{path} is left out: {ordered[when].path} also has step {when}", GeomonitorWarning, 2)
            continue
        ordered[when] = Moment(path, when, epoch)
    return [ordered[when] for when in sorted(ordered)]


def runs_of(paths: Sequence[str]) -> dict[str, list[Moment]]:
    """Checkpoints run by run: no checkpoint is left out because another one of its step has other weights.

    Args:
        paths: checkpoint files, in any order.

    Returns:
        Checkpoints in the order of training by name of the run. One run, ``""``, if all steps differ; otherwise one for
        each folder, and for each file of a folder that itself has two of one step.

    Raises:
        InputError: as :func:`moments`.
    """
    try:
        return {"": moments(paths)}
    except SeveralRunsError:
        pass
    folders: dict[Path, list[str]] = {}
    for path in paths:
        folders.setdefault(Path(path).resolve().parent, []).append(path)
    runs: dict[str, list[Moment]] = {}
    for folder, inside in folders.items():
        try:
            runs[_unique(folder.name, runs)] = moments(inside)
        except SeveralRunsError:
            for path in inside:
                runs[_unique(Path(path).stem, runs)] = moments([path])
    return runs


def scan(
    monitor: GeometryMonitor, model: nn.Module, checkpoints: Sequence[Moment], *, run: str = ""
) -> Iterator[Verdict | None]:
    """Measure checkpoints one after the other; with several processes each takes its share of them.

    A checkpoint is measured by one process, whole, so the numbers do not depend on how many there are. Each takes a
    stretch of them, and measures again what its own are compared with: the checkpoint before (errors of changes) and
    the first one (drift). Processes come from ``torchrun`` (by its environment variables); the process group must
    not be initialised, as the metrics would then wait for one another. The first process collects everything in its
    ``monitor.history``, in order, and judges it as the run would have been judged.

    Args:
        monitor: what to measure; its history is appended to, in the first process only.
        model: takes the weights of each checkpoint in turn; on the device on which to measure.
        checkpoints: from :func:`moments`.
        run: its name in :func:`runs_of`, which keeps two runs apart between processes.

    Yields:
        In the first process, after each checkpoint: a verdict that has just turned to "declined", or None. In the
        others nothing, until all is done.

    Raises:
        InputError: a checkpoint that does not fit the model, a layer that does not exist.
        MeasurementError: not one checkpoint could be measured.
    """
    exchange = Exchange("scan shares out the checkpoints", run)
    rank = exchange.rank
    judge, history = monitor.judge, monitor.history
    monitor.judge = LiveJudge(None, "raise", WarnOnce())  # judged here, with all measurements
    try:
        mine = exchange.stretch(len(checkpoints))
        if rank and mine:
            for place in sorted({mine[0] - 1} | ({0} if "drift" in monitor.markers else set())):
                _measure(monitor, model, checkpoints[place])
        measured = False
        for place, moment in enumerate(checkpoints):
            own = place in mine
            records = _measure(monitor, model, moment) if own else []
            if rank:
                if own:
                    exchange.send(place, json.dumps(records))  # repr of floats: every digit
                continue
            if not own:
                records = [Record(*row) for row in json.loads(exchange.receive(place))]
                history.append(records)
            measured = measured or any(math.isfinite(r.value) for r in records if r.marker in monitor.markers)
            yield _judged(judge, history, records, moment)
        if not rank and not measured:
            raise MeasurementError("no checkpoint could be measured: all values are NaN; the warnings give the reasons")
    finally:
        monitor.judge = judge


def same_weights(one: str, other: str) -> bool:
    """Whether two checkpoints hold equal weights."""
    first, second = load_checkpoint(one).weights, load_checkpoint(other).weights
    return first.keys() == second.keys() and all(
        value is second[name] or (isinstance(value, Tensor) and torch.equal(value, second[name]))
        for name, value in first.items()
    )


def _unique(name: str, taken: Collection[str]) -> str:
    return next(each for n in itertools.count(1) if (each := name if n == 1 else f"{name}-{n}") not in taken)


def _measure(monitor: GeometryMonitor, model: nn.Module, moment: Moment) -> list[Record]:
    checkpoint: Checkpoint = load_checkpoint(moment.path)
    load_weights(model, checkpoint)
    return monitor.measure(model, step=moment.step, epoch=moment.epoch)


def _judged(judge: LiveJudge, history: History, records: list[Record], moment: Moment) -> Verdict | None:
    """Judge a checkpoint as the monitor of a run would have, and return the first alarm that is new."""
    values: dict[str, dict[str, tuple[float, float]]] = {}
    changes = {}
    for record in records:
        if record.layer:
            values.setdefault(record.layer, {})[record.marker] = record.value, record.standard_error
            changes[record.layer, record.marker] = record.change_error
    history.append(judge.update(moment.step, moment.epoch, values, changes, history))
    return judge.new_alarms[0] if judge.new_alarms else None
