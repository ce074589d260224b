"""The processes of a run meet before each measurement: all are there, and all measure alike.

They meet in the key-value store of the process group, on any backend. A process that comes alone (``if rank == 0:``)
would wait in a collective until the time-out of the backend; here it is named within seconds. What differs is compared
in one place, by the last one to come, so that all processes raise the same error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from geomonitor._distributed import Processes
from geomonitor.errors import InputError, MeasurementError
from geomonitor.measure.protocol import explained

LONGEST_WAIT = 25.0
"""Seconds that a process waits for the others at first; half the time-out of the process group, if that is less."""
SHORT_WAIT = 1.0
"""Seconds it waits if some did not come the last time either: they do not measure at all."""
PATIENCE = 4
"""If the others came too late the last time, it waits this many times as long."""
LONGEST_PAUSE = 0.1
"""Seconds between two looks into the store, which start at a thousandth of this."""
MOST_RANKS, MOST_TEXT = 8, 120
"""How many ranks, and how many characters of a value, a message names."""


class AbsentError(MeasurementError):
    """Some processes did not come: nothing may be sent to them, for they do something else."""


class DifferenceError(MeasurementError):
    """The processes are not set up alike: every process raises this."""


class Meeting:
    """A place in which the processes of a run meet.

    Args:
        processes: which.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._wait = LONGEST_WAIT
        self._missed: int | None = None  # number of the latest meeting to which not all came in time

    def meet(
        self, call: str, settings: Mapping[str, Any], failure: Exception | None = None, complete: bool = True
    ) -> tuple[str, bool]:
        """Wait for the others, and compare; to be called by every process.

        Args:
            call: by which the processes come here, such as ``measure(step=3)``, for messages; calls in different words
                are different ones.
            settings: what has to be alike, by name; plain values, as JSON has them. What stands under a name with a
                question mark may differ.
            failure: why this process cannot measure.
            complete: whether this process knows all that it should.

        Returns:
            Ranks that differ under the names with a question mark, in words; whether all processes are complete.

        Raises:
            Exception: the failure, if there is one process, or all of them have the same.
            InputError: one process has another failure of this kind, and so have all.
            DifferenceError: settings differ.
            MeasurementError: a process has another failure.
            AbsentError: not all processes came in time.
        """
        store = self._processes.store() if self._processes.size > 1 else None
        if store is None:
            if failure is not None:
                raise failure
            return "", complete
        kind = "InputError" if isinstance(failure, InputError) else "MeasurementError"
        note = {
            "settings": dict(settings),
            "complete": complete,
            "failure": None if failure is None else [kind, f"{type(failure).__name__}: {failure}"],
        }
        outcome = self._outcome(store, call, json.dumps(note, default=str))
        if outcome["kind"] == "same failure" and failure is not None:
            raise failure
        if outcome["kind"] != "go":
            kinds = {"absent": AbsentError, "InputError": InputError, "differ": DifferenceError}
            raise kinds.get(outcome["kind"], MeasurementError)(outcome["message"]) from failure
        return str(outcome["message"]), bool(outcome["complete"])

    def _outcome(self, store: Any, call: str, note: str) -> dict[str, Any]:
        """What the meeting came to; the first process that knows writes it down, and that holds for all."""
        me, size = self._processes.rank, self._processes.size
        wait = self._patience(store)
        while True:
            number = store.add(f"calls/{me}", 1)
            place = f"{number}/outcome"
            if not store.check([place]):
                break
            ended = json.loads(store.get(place))
            if ended["call"] == call:  # this process is late
                store.add(f"{number}/came", 1)
                self._missed = number
                return dict(ended)
            # Else the others called in vain what this process never called: they are further.
        store.set(f"{number}/{me}", note)
        if store.add(f"{number}/came", 1) == size:
            proposed = self._compared(store, number)
        else:
            proposed = self._waited(store, number, time.monotonic() + wait, call)
        outcome = json.loads(store.compare_set(place, "", json.dumps({**proposed, "call": call})))
        self._missed = number if outcome["kind"] == "absent" else None
        store.delete_key(f"{number - 1}/{me}")
        return dict(outcome)

    def _patience(self, store: Any) -> float:
        """How long to wait: longer if the others were late the last time, shorter if they did not come at all."""
        if self._missed is not None:
            if store.add(f"{self._missed}/came", 0) < self._processes.size:
                return SHORT_WAIT
            self._wait *= PATIENCE
        return float(min(self._wait, store.timeout.total_seconds() / 2))

    def _waited(self, store: Any, number: int, end: float, call: str) -> dict[str, Any]:
        began, pause = time.monotonic(), LONGEST_PAUSE / 1000
        while not store.check([f"{number}/outcome"]):
            if time.monotonic() > end:
                names = self._processes.names
                came = [name for rank, name in enumerate(names) if store.check([f"{number}/{rank}"])]
                absent = [name for name in names if name not in came]
                return {
                    "kind": "absent",
                    "message": f"{_ranks(came)} called {call}, and {_ranks(absent)} did not within "
                    f"{time.monotonic() - began:.0f} s, so nothing is measured. Every process has to call it: take it "
                    "out of `if rank == 0:`, or give GeometryMonitor the process_group of those that do. If the others "
                    "were busy for longer, such as with saving a checkpoint on one rank, measure before that.",
                }
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return {}  # it is written down already

    def _compared(self, store: Any, number: int) -> dict[str, Any]:
        """All came: whether all can measure, and alike."""
        notes = [json.loads(store.get(f"{number}/{rank}")) for rank in range(self._processes.size)]
        failures = [note["failure"] for note in notes]
        if all(failures) and len({text for _, text in failures}) == 1:
            return {"kind": "same failure", "message": failures[0][1]}
        if any(failures):
            kind = "InputError" if any(found and found[0] == "InputError" for found in failures) else "failure"
            texts = [None if found is None else found[1] for found in failures]
            return {
                "kind": kind,
                "message": f"nothing is measured, because {_by_rank(self._having(texts), 10 * MOST_TEXT)}",
            }
        settings = [note["settings"] for note in notes]
        differ = [name for name in _names(settings) if _differs(name, settings)]
        having = {name: self._having([_text(each.get(name)) for each in settings]) for name in differ}
        refused = [
            f"{explained(name)}: {_by_rank(values, MOST_TEXT)}" for name, values in having.items() if name[-1] != "?"
        ]
        if refused:
            return {
                "kind": "differ",
                "message": f"the processes are not set up alike, so nothing is measured. {'. '.join(refused)}. Give "
                "every process the same probe set, options and model, and call measure at the same step.",
            }
        named = [" / ".join(map(_ranks, values.values())) for values in having.values()]
        complete = all(note["complete"] for note in notes)
        return {"kind": "go", "message": ". ".join(named), "complete": complete}

    def _having(self, texts: list[str | None]) -> dict[str, list[int]]:
        """The ranks that have a text, by that text; ranks without one are left out."""
        having: dict[str, list[int]] = {}
        for name, text in zip(self._processes.names, texts, strict=True):
            if text is not None:
                having.setdefault(text, []).append(name)
        return having


def _names(settings: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for each in settings for name in each))


def _differs(name: str, settings: list[dict[str, Any]]) -> bool:
    values = [each.get(name) for each in settings]
    return len(set(map(_text, values))) > 1 and not (name.endswith("?") and None in values)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _by_rank(having: Mapping[str, list[int]], most: int) -> str:
    return "; ".join(f"on {_ranks(ranks)}: {_cut(text, most)}" for text, ranks in having.items())


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."


def _ranks(ranks: list[int]) -> str:
    """Ranks in words.

    >>> _ranks([1]), _ranks([0, 2])
    ('rank 1', 'ranks 0, 2')
    """
    listed = ", ".join(map(str, ranks[:MOST_RANKS]))
    more = f" and {len(ranks) - MOST_RANKS} more" if len(ranks) > MOST_RANKS else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}{more}"
