"""``geomonitor markers``."""

from __future__ import annotations

from typing import Annotated

import rich.console
import typer

from geomonitor.cli.page import markers_page
from geomonitor.cli.terminal import AsJson, output, output_json
from geomonitor.markers import BESIDE, MARKER_GROUPS, MARKERS


def markers(
    group: Annotated[str, typer.Option(help=f"only those of a group: {', '.join(MARKER_GROUPS)}")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="print docs/markers.md")] = False,
    as_json: AsJson = False,
) -> None:
    """Print every marker: what it is, what it costs, which direction is worse, its source."""
    if group and group not in MARKER_GROUPS:
        raise typer.BadParameter(f"there are the groups {', '.join(MARKER_GROUPS)}; got {group!r}")
    rows = {name: MARKERS[name] for name in MARKER_GROUPS[group]} if group else {**MARKERS, **BESIDE}
    if as_json:
        output_json({"markers": rows})
        return
    if markdown:
        output(markers_page().removesuffix("\n"))
        return
    console = rich.console.Console(highlight=False)
    for name, row in rows.items():
        worse = f", worse when {row.worse}" if row.worse else ""
        console.print(f"[bold]{name}[/bold]  [cyan]{row.state}, cost {row.cost}{worse}[/cyan]")
        console.print(f"    {row.description} [dim]({row.source})[/dim]")
