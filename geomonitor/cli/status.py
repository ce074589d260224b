"""``geomonitor status``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geomonitor.cli.terminal import AsJson, output, output_json

if TYPE_CHECKING:
    from geomonitor.alarms.status_text import Status
    from geomonitor.history.runs import Run


def status(
    runs: Annotated[list[Path], typer.Argument(help="a run: its directory, its geometry.csv or its id; also several")],
    as_json: AsJson = False,
) -> None:
    """Print whether a run is healthy, and what to do if it is not; exit code 1 in an alarm."""
    from geomonitor.cli.runs import loaded
    from geomonitor.report.findings import status as status_of_run

    found = [(run, status_of_run(run)) for run in loaded(runs)]
    if as_json:
        rows = [{"run": run.id, "path": run.path, **status.to_dict()} for run, status in found]
        output_json(rows[0] if len(rows) == 1 else {"runs": rows})
    elif len(found) == 1:
        output(found[0][1].text)
    else:
        _output_all(found)
    if any(status.state == "alarm" for _, status in found):
        raise typer.Exit(1)


def _output_all(found: list[tuple[Run, Status]]) -> None:
    """The first line of each run, and of those in an alarm what to do."""
    from geomonitor.history.runs import named

    for run, status in found:
        lines = status.actions if status.state in ("alarm", "blind") else ()
        output("\n  ".join((named(run.path), f"{status.title}: {status.headline}", *lines)))
