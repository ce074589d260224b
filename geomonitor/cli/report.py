"""``geomonitor report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomonitor.cli.terminal import AsJson, output_json
from geomonitor.cli.terminal import output as output_line
from geomonitor.history.runs import load_run
from geomonitor.report import write_report


def report(
    run: Annotated[Path, typer.Argument(help="directory of the run, where geometry.csv lies")],
    compare: Annotated[
        list[Path] | None, typer.Option(help="another run to draw beside it; may be given again")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="the HTML file  [default: geometry.html beside the history]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a report of a run: one HTML file that needs no network."""
    shown = load_run(run)
    others = [load_run(path) for path in compare or ()]
    path = write_report(shown, output or shown.path.with_suffix(".html"), compare=others)
    if as_json:
        output_json({"path": path, "bytes": path.stat().st_size})
        return
    output_line(f"{path} ({path.stat().st_size / 1e3:.0f} kB)")
