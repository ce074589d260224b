"""``geomonitor status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomonitor.cli.terminal import AsJson, output, output_json


def status(
    run: Annotated[Path, typer.Argument(help="directory of a run, or its geometry.csv")],
    as_json: AsJson = False,
) -> None:
    """Print whether a run is healthy, and what to do if it is not; exit code 1 in an alarm."""
    from geomonitor.alarms.panel import panel_of
    from geomonitor.alarms.status import status_of
    from geomonitor.history.runs import load_run

    loaded = load_run(run)
    found = status_of(loaded.history, panel=panel_of(loaded.panel), healthy=loaded.last_healthy)
    if as_json:
        output_json(found.to_dict())
    else:
        output(found.text)
    if found.state == "alarm":
        raise typer.Exit(1)
