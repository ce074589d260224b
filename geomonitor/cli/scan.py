"""``geomonitor scan``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from geomonitor.cli.measured import model_of, monitor_of
from geomonitor.cli.terminal import AsJson, Progress, output_json
from geomonitor.cli.terminal import output as show
from geomonitor.decide.scan import runs_of
from geomonitor.decide.scan import scan as measured
from geomonitor.history.runs import HISTORY_FILE


def scan(
    checkpoints: Annotated[list[str], typer.Argument(help="Lightning .ckpt, state_dict .pt or .safetensors files")],
    *,
    model: Annotated[str, typer.Option(help="package.module:factory, a function or class that makes the model")],
    probe: Annotated[
        str,
        typer.Option(help="package.module:name of a ProbeSet, of a GeometryMonitor, or of a function that makes one"),
    ],
    output: Annotated[Path, typer.Option(help="directory that the history goes to")] = Path("geometry_scan"),
    layers: Annotated[
        list[str] | None, typer.Option("--layer", help="layer to measure, may be given again  [default: penultimate]")
    ] = None,
    markers: Annotated[
        list[str] | None, typer.Option("--marker", help="marker or group, may be given again  [default: default]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure saved checkpoints and write a history, as if a monitor had watched the training.

    On several GPUs or processes: torchrun --nproc-per-node 2 -m geomonitor.cli scan ...
    """
    rank = int(os.environ.get("RANK", "0"))
    monitor = monitor_of(probe, layers, markers)
    network = model_of(model)
    runs = runs_of(checkpoints)
    written = []
    for name, ordered in runs.items():
        if rank == 0:
            monitor.reset()
            monitor.open_history(output / name / HISTORY_FILE)
        with Progress(f"measuring checkpoints {name}".strip(), len(ordered), quiet=rank > 0) as progress:
            for verdict in measured(monitor, network, ordered, run=name):
                progress.advance()
                if verdict is not None:
                    progress.line(monitor.explain(verdict).splitlines()[0])
        written.append({"path": output / name / HISTORY_FILE, "checkpoints": len(ordered)})
        if rank == 0 and not as_json:
            show(f"{len(ordered)} checkpoints measured: {output / name / HISTORY_FILE}")
    if rank == 0 and as_json:
        output_json({"runs": written})
    elif rank == 0 and len(runs) > 1:
        show(f"{len(runs)} runs, as weights of one step differ; to order finished models: geomonitor rank")
