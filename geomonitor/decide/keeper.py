"""Keeps the last checkpoint from before a decline, however long the decline lasts; knows no training framework.

A framework saves checkpoints and deletes old ones by rules of its own. The keeper gives the last one that was saved
while nothing declined a second name, which these rules do not see, and moves that name on as long as nothing declines.
"""

from __future__ import annotations

import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geomonitor import _options
from geomonitor._distributed import Processes
from geomonitor._warnings import WarnOnce
from geomonitor.alarms.verdict import Verdict
from geomonitor.decide.checkpoints import load_checkpoint, load_weights
from geomonitor.decide.kept_file import KeptFile, mark_of
from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.history.saved import SavedCheckpoint
from geomonitor.monitor import GeometryMonitor
from geomonitor.run import MonitoredRun

NAME = "healthy"
"""First word of the name of the checkpoint that is kept."""
_REMEMBERED = 1_000
"""Saved checkpoints that are remembered, the newest ones: most of them are deleted soon after."""


def declining_since(verdicts: Iterable[Verdict], latest: int | None, *, pending: bool) -> int | None:
    """First step of what declines; None if nothing does.

    A checkpoint is healthy if the measurement at its step finds None here with ``pending=True``. At the end of a run
    the newest healthy one is loaded if its step is before the one found with ``pending=False``.

    Args:
        verdicts: of each layer at one measurement.
        latest: step of the measurement, for a detector of the user that does not give the first one.
        pending: also count a decline that is not confirmed yet.

    >>> from geomonitor import Verdict
    >>> low = Verdict(False, "penultimate", "dimension", 1.0, 2.0, 0.1, since_step=6, checks=1)
    >>> declining_since([low], 7, pending=True), declining_since([low], 7, pending=False)
    (6, None)
    """
    low = [v for v in verdicts if v.declined or (pending and v.checks)]
    found = [latest if v.since_step is None else v.since_step for v in low]
    return min((step for step in found if step is not None), default=None)


class CheckpointKeeper:
    """Keeps the last checkpoint from before a decline as ``healthy-...``, and names it as ``monitor.last_healthy``.

    A checkpoint is healthy if the measurement at its step, or the first one after it, finds no watched marker of any
    layer declining, pending ones included. The one that is kept is the newest healthy one; during a decline that is
    the last one from before its first measurement. At most one file more than the framework keeps is on the disk.
    Only links that the keeper has made are ever deleted.

    An adapter calls :meth:`start`, :meth:`saved` after each checkpoint, :meth:`finish` at the end of the run; with
    several processes each of them has to make the calls.

    Args:
        restore: load what was kept at the end of a run that is declining, also if it was stopped.
    """

    def __init__(self, *, restore: bool = False) -> None:
        self.restore = _options.flag("restore", restore)
        self.healthy_until = -1
        """step of the latest measurement that found nothing declining; -1 before the first"""
        self.restored: SavedCheckpoint | None = None
        """what :meth:`finish` has loaded"""
        self._run: MonitoredRun | None = None
        self._saved: list[SavedCheckpoint] = []  # in the order in which they were saved
        self._kept: KeptFile | None = None  # on rank 0 only
        self._last: SavedCheckpoint | None = None
        self._token = ""  # of the run, so that a resumed one finds what it kept
        self._warn = WarnOnce()

    @property
    def monitor(self) -> GeometryMonitor:
        """The monitor of the run.

        Raises:
            InputError: before :meth:`start`.
        """
        if self._run is None:
            raise InputError("a CheckpointKeeper needs a run: call start(run) first")
        return self._run.monitor

    @property
    def last_healthy(self) -> SavedCheckpoint | None:
        """The checkpoint that is kept; None if there is none yet."""
        return self._last

    def start(self, run: MonitoredRun) -> None:
        """Follow a run; to be called after ``run.start``.

        Raises:
            InputError: the monitor judges nothing, so no decline would ever be found.
        """
        if run.monitor.panel is None:
            raise InputError("a monitor with panel=None finds no decline, so no checkpoint can be kept from before it")
        self._run, self.restored = run, None
        if self._measured not in run.after_measurement:
            run.after_measurement.append(self._measured)
        if not run.monitor.history.measurements:  # a new run: what an earlier one has kept stays
            self.healthy_until, self._saved, self._last, self._kept, self._token = -1, [], None, None, ""
        self._token = self._token or secrets.token_hex(8)
        self._last = self.monitor.processes.gathered(self._found_again())[0]
        self._name()

    def saved(self, path: str | os.PathLike[str], *, step: int, epoch: int | None = None) -> None:
        """A checkpoint was saved, a file or a folder; it stays the framework's own."""
        checkpoint = SavedCheckpoint(str(path), step, epoch)
        self._saved = [*[c for c in self._saved if c.path != checkpoint.path][-_REMEMBERED:], checkpoint]
        self._keep_newest()

    def wants(self, step: int) -> bool:
        """Whether the state of this step is healthy by its own measurement, and no checkpoint of it is kept yet."""
        return step == self.healthy_until and (self._last is None or self._last.step < step)

    def finish(self, model: nn.Module | None = None, load: Callable[[Path], None] | None = None) -> None:
        """End the run; with ``restore``, load what was kept if the run is declining.

        Args:
            model: into which the weights are loaded, all or none; left as it is if the run is not declining.
            load: loads the file or folder instead, in every process: for shards, which
                ``torch.distributed.checkpoint.load(state, checkpoint_id=path)`` reads.

        Warns:
            GeomonitorWarning: there is nothing to load, or it does not fit; the model stays as it is.
        """
        since = self._declining_since(pending=False)
        if not self.restore or since is None:
            return
        problem = self._problem(since)
        if problem is None:
            assert self._last is not None  # no problem
            path = Path(self._last.path)
            if load is None:
                assert model is not None  # one of both is given
                problem = _load_everywhere(model, path, self.monitor.processes)
            else:
                problem = _load_by(load, path, self.monitor.processes)
        if problem is None:
            self.restored = self._last
        elif self.monitor.processes.rank == 0:
            text = f"no checkpoint is restored, the weights stay those of the end of the run: {problem}"
            warnings.warn(text, GeomonitorWarning, stacklevel=3)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "healthy_until": self.healthy_until,
            "last": None if self._last is None else self._last._asdict(),
            "token": self._token,
            "saved": [checkpoint._asdict() for checkpoint in self._saved],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; to be called before :meth:`start`."""
        self.healthy_until = int(state["healthy_until"])
        self._saved = [c for entry in state["saved"] if (c := SavedCheckpoint.of(entry)) is not None]
        self._last, self._token, self._kept = SavedCheckpoint.of(state["last"]), str(state["token"]), None

    def _measured(self) -> None:
        """After each measurement: a step at which nothing declines makes older checkpoints healthy ones."""
        assert self._run is not None  # it calls
        step = self._run.last_step
        if step is not None and self._declining_since() is None and not self._run.failed:
            self.healthy_until = step
            self._keep_newest()
        elif self._run.monitor.new_alarms and self.monitor.processes.rank == 0:
            since = self._declining_since(pending=False)
            problem = None if since is None else self._problem(since)
            if problem is not None:
                self._warn(problem, "nothing from before")

    def _declining_since(self, *, pending: bool = True) -> int | None:
        """As :func:`declining_since`, in any layer."""
        latest = self._run.last_step if self._run is not None else None
        return declining_since(self.monitor.verdicts.values(), latest, pending=pending)

    def _problem(self, since: int) -> str | None:
        """Why the kept checkpoint cannot be gone back to; None if it can."""
        if self._last is None or self._last.step >= since:
            found = "" if self._last is None else f"; the oldest that is kept is {self._last}"
            return f"no checkpoint was saved before the decline began, at step {since}{found}"
        there = os.path.exists(self._last.path)
        return None if there else f"the last checkpoint from before the decline, {self._last}, was deleted or moved"

    def _keep_newest(self) -> None:
        """Link the newest healthy checkpoint that still exists, and delete the link to the one before."""
        found: SavedCheckpoint | None = self._last
        if self.monitor.processes.rank == 0:
            healthy = [c for c in self._saved if c.step <= self.healthy_until and os.path.exists(c.path)]
            newest = max(healthy, key=lambda c: c.step, default=None)
            gone = self._last is not None and not (self._kept is not None and self._kept.exists)
            if newest is not None and (self._last is None or gone or newest.step > self._last.step):
                found = self._link(newest)
        found = self.monitor.processes.gathered(found)[0]
        if found != self._last:
            self._last = found
            self._name()

    def _link(self, newest: SavedCheckpoint) -> SavedCheckpoint | None:
        original = Path(newest.path)
        ending = "" if original.is_dir() else original.suffix
        epoch = "" if newest.epoch is None else f"epoch={newest.epoch}-"
        before, mark = self._kept, None
        try:
            kept = KeptFile.link(original, original.with_name(f"{NAME}-{epoch}step={newest.step}{ending}"))
            try:
                mark = mark_of(kept.path)
                mark.write_text(json.dumps({**newest._asdict(), "path": kept.path.name, "run": self._token}) + "\n")
            except OSError:
                kept.remove()
                mark_of(kept.path).unlink(missing_ok=True)
                raise
        except OSError as error:
            stays = f"{self._last} stays the one that is kept" if self._last else "none is kept"
            self._warn(f"{newest} cannot be kept for a later decline ({error}): {stays}", "cannot link")
            return self._last
        self._kept = kept
        if before is not None and before.exists:
            before.remove()
            mark_of(before.path).unlink(missing_ok=True)
        return newest._replace(path=str(kept.path))

    def _found_again(self) -> SavedCheckpoint | None:
        """What this run had kept when it was cut off, if it is not of a part of the run that is done again."""
        folders = {Path(c.path).parent for c in (*self._saved, *([self._last] if self._last else []))}
        if self.monitor.processes.rank or not folders or self._kept is not None:
            return self._last
        own = [found for folder in folders if (found := _marked(folder, self._token)) is not None]
        latest = max(own, key=lambda c: c.step, default=None)
        if latest is not None:
            self._kept = KeptFile.at(Path(latest.path))
        return latest if latest is not None and latest.step <= self.healthy_until else None

    def _name(self) -> None:
        """Let the monitor, its warnings and the side file of its history name the checkpoint."""
        if self._run is not None:
            self.monitor.last_healthy = self._last
            self.monitor.history.note("last_healthy", None if self._last is None else self._last._asdict())


def _marked(folder: Path, token: str) -> SavedCheckpoint | None:
    """The checkpoint that a run has kept in a folder."""
    for mark in sorted(folder.glob(f"{NAME}-*.json")):
        try:
            entry = json.loads(mark.read_text())
        except (OSError, ValueError):
            continue
        found = SavedCheckpoint.of(entry)
        if found is not None and entry.get("run") == token and os.path.exists(folder / found.path):
            return found._replace(path=str(folder / found.path))
    return None


def _load_by(load: Callable[[Path], None], path: Path, processes: Processes) -> str | None:
    """Load a checkpoint by a function of the user in every process; the reason if one of them fails."""
    from torch.distributed.checkpoint.api import CheckpointException  # a BaseException, and slow to import

    problem = None
    try:
        load(path)
    except (InputError, OSError, RuntimeError, ValueError, KeyError, CheckpointException) as error:
        problem = str(error) or type(error).__name__
    return next((found for found in processes.gathered(problem) if found is not None), None)


def _load_everywhere(model: nn.Module, path: Path, processes: Processes) -> str | None:
    """Load a checkpoint into the model of every process, or of none; the reason if it cannot be."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    checkpoint, problem = None, None
    try:
        checkpoint = load_checkpoint(path)
    except (InputError, OSError) as error:
        problem = str(error)
    if not processes.all(problem is None, device):
        return problem or f"{path} cannot be read in another process"
    assert checkpoint is not None  # read in all processes
    try:
        load_weights(model, checkpoint)  # all weights or none; the same answer in every process
    except InputError as error:
        return str(error)
    return None
