"""``geomonitor compare``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from geomonitor.cli.terminal import message, output, table
from geomonitor.decide.compare import Finding, bound, compare_runs, differences
from geomonitor.history.printable import printable
from geomonitor.history.runs import load_run

BELOW_A_BOUND = 1


def compare(
    reference: Annotated[Path, typer.Argument(help="directory of the run to compare with")],
    run: Annotated[Path, typer.Argument(help="directory of the run that is checked")],
    minimum: Annotated[
        list[str] | None,
        typer.Option("--min", help="[LAYER/]MARKER=90% of the reference, or MARKER=0.9; may be given again"),
    ] = None,
    maximum: Annotated[
        list[str] | None, typer.Option("--max", help="the same for values that must not be exceeded")
    ] = None,
) -> None:
    """Compare the last measurements of two runs; exit code 1 when a marker breaks a bound.

    In the CI of a model: geomonitor compare runs/released runs/new --min dimension=90% --min accuracy=0.95
    """
    bounds = [bound(text, "min") for text in minimum or ()] + [bound(text, "max") for text in maximum or ()]
    before, after = load_run(reference), load_run(run)
    findings = compare_runs(before, after, bounds)
    titles = {"layer": "left", "marker": "left", "reference": "right", "run": "right", "change": "right"}
    table(titles, [(_cells(finding), "bold red" if finding.broken else None) for finding in findings])
    if changed := differences(before, after):
        message("warning", f"the protocols differ ({', '.join(changed)}): these values must not be compared")
    broken = [(finding, b) for finding in findings for b in finding.broken]
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


def _cells(f: Finding) -> list[str]:
    return [f.layer, f.marker, _number(f.reference, f.reference_error), _number(f.value, f.error), _percent(f)]


def _number(value: float, error: float) -> str:
    return f"{value:.4g}" + (f" ± {error:.2g}" if math.isfinite(error) else "")


def _percent(finding: Finding) -> str:
    return f"{finding.change:+.1%}" if math.isfinite(finding.change) else ""
