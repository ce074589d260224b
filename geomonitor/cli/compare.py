"""``geomonitor compare``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from geomonitor.cli.terminal import AsJson, message, output, output_json, table
from geomonitor.decide.compare import Finding, bound, compare_runs
from geomonitor.decide.many import Row, compare_many, regressions
from geomonitor.errors import InputError
from geomonitor.history.printable import printable
from geomonitor.history.runs import Run, load_run
from geomonitor.measure.protocol import differences
from geomonitor.report.many import cells, limits, write_comparison

BELOW_A_BOUND = 1
PAIR = 2
"""Runs of the simplest comparison."""


def compare(  # noqa: PLR0917 - options of a command line
    runs: Annotated[
        list[Path], typer.Argument(help="directories of runs; of two without --against, the reference first")
    ],
    minimum: Annotated[
        list[str] | None,
        typer.Option("--min", help="[LAYER/]MARKER=90% of the reference, or MARKER=0.9; may be given again"),
    ] = None,
    maximum: Annotated[
        list[str] | None, typer.Option("--max", help="the same for values that must not be exceeded")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="healthy runs of the same recipe, three or more; after the other runs")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="also write the table of many runs to this HTML file")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the last measurements of runs; exit code 1 when a marker breaks a bound or leaves the healthy band.

    In the CI of a model: geomonitor compare runs/released runs/new --min dimension=90% --min accuracy=0.95

    Many runs: geomonitor compare runs/new* --against runs/healthy*
    """
    if against or page or len(runs) != PAIR:
        if minimum or maximum:
            raise InputError(
                "--min and --max compare a run with a reference: give these two, without --against or --page"
            )
        compare_all([load_run(path) for path in runs], [load_run(path) for path in against or ()], page, as_json)
        return
    reference, run = runs
    bounds = [bound(text, "min") for text in minimum or ()] + [bound(text, "max") for text in maximum or ()]
    before, after = load_run(reference), load_run(run)
    findings = compare_runs(before, after, bounds)
    changed = differences(before.protocol, after.protocol)
    broken = [(finding, b) for finding in findings for b in finding.broken]
    if as_json:
        output_json({"markers": findings, "protocol_differences": list(changed), "broken": len(broken)})
        if broken:
            raise typer.Exit(BELOW_A_BOUND)
        return
    titles = {"layer": "left", "marker": "left", "reference": "right", "run": "right", "change": "right"}
    table(titles, [(_cells(finding), "bold red" if finding.broken else None) for finding in findings])
    if changed:
        message("warning", f"the protocols differ ({', '.join(changed)}): these values must not be compared")
    for finding, b in broken:
        limit = (
            f"{b.number * finding.reference:.4g}, {b.number:.0%} of the reference" if b.relative else f"{b.number:g}"
        )
        value = "undefined" if math.isnan(finding.value) else f"{finding.value:.4g}"
        side = "below" if b.side == "min" else "above"
        where = f"{printable(finding.marker)} of {finding.layer!r}"
        output(f"FAILED --{b.side} {b.text}: {where} is {value}, {side} {limit}")
    if broken:
        raise typer.Exit(BELOW_A_BOUND)
    if bounds:
        output(f"{len(bounds)} bounds kept")


def compare_all(runs: list[Run], against: list[Run], page: Path | None, as_json: bool = False) -> None:
    """Print many runs, the regressions among them, and write the page."""
    rows = compare_many(runs, against)
    found = regressions(rows, runs)
    if as_json:
        output_json({"runs": [run.path.parent for run in runs], "markers": rows, "regressions": found})
    else:
        show_all(rows, runs, against)
    if page is not None:
        path = write_comparison(rows, runs, page, healthy=len(against))
        if not as_json:
            output(path)
    if found:
        raise typer.Exit(BELOW_A_BOUND)
    if against and not as_json:
        output(f"no regression against {len(against)} healthy runs")


def show_all(rows: list[Row], runs: list[Run], against: list[Run]) -> None:
    """Print the table of many runs, and the regressions among them."""
    band = {"healthy mean": "right", "limit": "right"} if against else {}
    titles = {"layer": "left", "marker": "left", **band, **{run.name: "right" for run in runs}}
    if len(titles) < 2 + len(band) + len(runs):  # two runs of one name
        titles = {"layer": "left", "marker": "left", **band, **{str(run.path.parent): "right" for run in runs}}
    shown = []
    for row in rows:
        own = [text + (" !" if bad else "") for text, bad in cells(row)]
        shown.append(
            (
                [row.layer, row.marker, *(limits(row) if against else ()), *own],
                "bold red" if any(row.regressed) else None,
            )
        )
    table(titles, shown)
    for sentence in regressions(rows, runs):
        output(f"REGRESSED {sentence}")


def _cells(f: Finding) -> list[str]:
    return [f.layer, f.marker, _number(f.reference, f.reference_error), _number(f.value, f.error), _percent(f)]


def _number(value: float, error: float) -> str:
    return f"{value:.4g}" + (f" ± {error:.2g}" if math.isfinite(error) else "")


def _percent(finding: Finding) -> str:
    return f"{finding.change:+.1%}" if math.isfinite(finding.change) else ""
