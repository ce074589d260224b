"""``geomonitor report``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from geomonitor.cli.runs import loaded
from geomonitor.cli.terminal import AsJson, output_json
from geomonitor.cli.terminal import output as output_line
from geomonitor.errors import InputError
from geomonitor.history.runs import load_run
from geomonitor.report import write_report
from geomonitor.report.many import write_runs


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="a run: its directory or its id; several, or a directory above them: one page")
    ],
    compare: Annotated[
        list[Path] | None, typer.Option(help="another run to draw beside it; may be given again")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="the HTML file  [default: geometry.html beside the history, or above many runs]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a report of a run, or a page of many: one HTML file that needs no network."""
    shown = loaded(runs)
    if len(shown) == 1:
        others = [load_run(path) for path in compare or ()]
        path = write_report(shown[0], output or shown[0].path.with_suffix(".html"), compare=others)
    elif compare:
        raise InputError(f"--compare draws other runs beside one; {len(shown)} were named")
    else:
        above = Path(os.path.commonpath([run.path.parent.absolute() for run in shown]))
        path = write_runs(shown, output or above / "geometry_runs.html")
    if as_json:
        output_json({"path": path, "bytes": path.stat().st_size, "runs": [run.id for run in shown]})
        return
    output_line(f"{path} ({path.stat().st_size / 1e3:.0f} kB)")
