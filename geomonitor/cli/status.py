"""``geomonitor status``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from geomonitor.cli.terminal import output


def status(
    run: Annotated[Path, typer.Argument(help="directory of a run, or its geometry.csv")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print whether a run is healthy, and what to do if it is not; exit code 1 in an alarm."""
    from geomonitor.alarms.panel import panel_of
    from geomonitor.alarms.status import status_of
    from geomonitor.history.runs import load_run

    loaded = load_run(run)
    found = status_of(loaded.history, panel=panel_of(loaded.panel), healthy=loaded.last_healthy)
    output(json.dumps(found.to_dict()) if as_json else found.text)
    if found.state == "alarm":
        raise typer.Exit(1)
