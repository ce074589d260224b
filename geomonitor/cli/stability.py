"""``geomonitor stability``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from geomonitor.cli.terminal import AsJson, output_json, table
from geomonitor.errors import InputError
from geomonitor.history.runs import load_run
from geomonitor.history.stability import stability_of

_TITLES = ("forgetting", "plasticity", "either by noise", "lowest", "lower by noise", "worst case")
"""Columns for the fields of ``StabilityMetrics``."""


def stability(  # noqa: PLR0917 - options of a command line
    runs: Annotated[
        list[Path],
        typer.Argument(help="a run; or the runs of several probe sets, one a task, in the order of training"),
    ],
    marker: Annotated[str, typer.Option(help="the marker that is followed")] = "accuracy",
    window: Annotated[int, typer.Option(help="measurements in which a fall or a rise counts")] = 10,
    tasks: Annotated[str, typer.Option(help="steps after which the next task is trained, such as 1000,2000")] = "",
    layer: Annotated[str, typer.Option(help="this layer only")] = "",
    as_json: AsJson = False,
) -> None:
    """Print how far a marker falls and rises within a few measurements, beside what noise alone would do.

    With --tasks also the lowest value since the task of a probe set ended.

    For instance: geomonitor stability runs/mine --marker accuracy --tasks 1000,2000
    """
    histories = [load_run(run).history for run in runs]
    layers = [
        name
        for name in ([layer] if layer else histories[0].layers)
        if all(len(history.series(name, marker).steps) for history in histories)
    ]
    if not layers:
        where = f"layer {layer!r}" if layer else "any layer"
        raise InputError(f"{marker!r} was not measured in {where} of all runs; name another by --marker")
    ends = [_step(text) for text in tasks.split(",") if text.strip()]
    found = {
        name: stability_of([history.series(name, marker) for history in histories], window=window, tasks=ends)
        for name in layers
    }
    if as_json:
        output_json({"marker": marker, "window": window, "layers": found})
        return
    columns = {"layer": "left", **dict.fromkeys(_TITLES, "right")}
    rows = [[name, *("-" if math.isnan(number) else f"{number:.4g}" for number in found[name])] for name in layers]
    table(columns, [(row, None) for row in rows])


def _step(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            f"--tasks takes whole numbers with commas between them, such as 1000,2000; got {text!r}"
        ) from error
