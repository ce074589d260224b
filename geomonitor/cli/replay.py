"""``geomonitor replay``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from geomonitor.alarms.alarm import Alarm
from geomonitor.alarms.context import what_changed
from geomonitor.alarms.detectors import DETECTORS
from geomonitor.alarms.judge import replay as replay_history
from geomonitor.alarms.panel import AUTO, DEFAULT_WATCH, Panel, panel_of
from geomonitor.alarms.words import explain
from geomonitor.cli.terminal import AsJson, message, output, output_json
from geomonitor.errors import InputError
from geomonitor.history.printable import printable
from geomonitor.history.runs import load_run

ALARMS = 1


def replay(  # noqa: PLR0917 - options of a command line
    run: Annotated[Path, typer.Argument(help="directory of a run, or its geometry.csv")],
    detector: Annotated[str, typer.Option(help=f"one of {', '.join(DETECTORS)}")] = AUTO,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="a setting of the detector, such as drop=0.2; again for more")
    ] = None,
    watch: Annotated[
        list[str] | None, typer.Option(help=f"a marker to judge, again for more; by default {', '.join(DEFAULT_WATCH)}")
    ] = None,
    votes: Annotated[
        float | None,
        typer.Option(help="families of markers that must decline together; a pending family has half a vote"),
    ] = None,
    layer: Annotated[str, typer.Option(help="judge this layer only")] = "",
    as_json: AsJson = False,
) -> None:
    """Judge a saved run again, by its own panel or by other settings; exit code 1 when there is an alarm.

    For instance: geomonitor replay runs/mine --detector drop_from_reference --set drop=0.2 --watch dimension
    """
    loaded = load_run(run)
    settings = dict(_setting(text) for text in setting or ())
    layers = [layer] if layer else sorted(loaded.history.layers)
    given = Panel(tuple(watch) if watch else None, detector, votes)
    found: dict[str, list[Alarm]] = {}
    own = panel_of(loaded.panel)
    if given == Panel() and not settings:
        if own.custom:
            message("note", f"the run was judged by a detector of its own, {own.custom}; here the default panel judges")
        else:
            given = own
    for name in layers:
        panel = given.resolve(loaded.history.markers(name), **settings)
        if not panel.watch:
            raise InputError(f"none of {', '.join(DEFAULT_WATCH)} was measured in {name!r}; name others by --watch")
        found[name] = replay_history(loaded.history, name, panel)
    if as_json:
        output_json({"run": loaded.id, "path": loaded.path, "alarms": found})
    for name, alarms in () if as_json else found.items():
        output(f"{printable(name)}: {_count(len(alarms))}")
        for alarm in alarms:
            output(f"\nalarm {_when(alarm)}")
            if alarm.verdict is not None:
                output(explain(alarm.verdict, what_changed(loaded.history, alarm.verdict.since_step or 0)))
    if any(found.values()):
        raise typer.Exit(ALARMS)


def _setting(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise InputError(f"--set takes NAME=VALUE, such as drop=0.2; got {text!r}")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def _count(alarms: int) -> str:
    return "no alarm" if not alarms else "1 alarm" if alarms == 1 else f"{alarms} alarms"


def _when(alarm: Alarm) -> str:
    start = f"step {alarm.step}" if alarm.epoch is None else f"epoch {alarm.epoch} (step {alarm.step})"
    end = "to the end" if alarm.end_step is None else f"until step {alarm.end_step}"
    return f"at {start}, {end}"
