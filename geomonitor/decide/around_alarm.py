"""The two checkpoints of a run that show what an alarm is about: from before the decline, and from the alarm on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from geomonitor.alarms.alarm import Alarm, recorded_alarms
from geomonitor.alarms.panel import panel_of
from geomonitor.alarms.status import status_of
from geomonitor.decide.checkpoints import load_checkpoint
from geomonitor.errors import InputError
from geomonitor.history.history import History
from geomonitor.history.runs import Run

_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")


class AroundAlarm(NamedTuple):
    """An alarm of a run, and when the decline before it began."""

    run: Run
    alarm: Alarm
    since_step: int
    """first measurement of the decline; that of the alarm if it is not known"""

    def before(self) -> Path:
        """The last healthy checkpoint that the run kept, or the last one in its folder from before the decline.

        Raises:
            InputError: there is none.
        """
        kept = self.run.last_healthy
        if kept is not None and kept.step < self.since_step and Path(kept.path).is_file():
            return Path(kept.path)
        found = [(step, path) for step, path in self._checkpoints() if step < self.since_step]
        if not found:
            raise InputError(self._none(f"from before step {self.since_step}, the start of the decline,", "--before"))
        return max(found)[1]

    def after(self) -> Path:
        """The first checkpoint in the folder of the run from the alarm on.

        Raises:
            InputError: there is none.
        """
        found = [(step, path) for step, path in self._checkpoints() if step >= self.alarm.step]
        if not found:
            raise InputError(self._none(f"from the alarm at step {self.alarm.step} on", "--after"))
        return min(found)[1]

    def _checkpoints(self) -> Iterator[tuple[int, Path]]:
        """Step and path of each file in the folder of the run that is a checkpoint and has its step."""
        for path in sorted(self.run.path.parent.rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                try:
                    step = load_checkpoint(path).step
                except InputError:  # another kind of file
                    continue
                if step is not None:
                    yield step, path

    def _none(self, which: str, option: str) -> str:
        return f"no checkpoint {which} lies in {self.run.path.parent} or below it: name one by {option}"


def around_alarm(run: Run, layer: str | None = None) -> AroundAlarm:
    """The alarm of a run that lasts, or else its latest one.

    Args:
        run: from ``load_run``.
        layer: alias of the layer; by default any.

    Raises:
        InputError: the run recorded no alarm.
    """
    alarms = [alarm for name in run.history.layers for alarm in recorded_alarms(run.history, name)]
    alarms = [alarm for alarm in alarms if layer in (None, alarm.layer)]
    if not alarms:
        where = "" if layer is None else f" of {layer!r}"
        raise InputError(
            f"{run.path.parent} recorded no alarm{where}: name the checkpoints to compare by --before and --after"
        )
    alarm = max(alarms, key=lambda each: (each.end_step is None, each.step))
    known = (each for each in run.history if each.layer in ("", alarm.layer) and each.step <= alarm.step)
    status = status_of(History(known), panel=panel_of(run.panel))  # as it was at the alarm
    since = status.since_step if status.state == "alarm" else None
    return AroundAlarm(run, alarm, alarm.step if since is None else min(since, alarm.step))
