"""``geomonitor scan``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from geomonitor.alarms.panel import DEFAULT_WATCH, Panel
from geomonitor.alarms.words import headline
from geomonitor.cli.targets import own_code, target
from geomonitor.cli.terminal import Progress
from geomonitor.cli.terminal import output as show
from geomonitor.decide.scan import moments
from geomonitor.decide.scan import scan as measured
from geomonitor.errors import InputError
from geomonitor.history.runs import HISTORY_FILE
from geomonitor.markers import MARKER_GROUPS
from geomonitor.monitor import GeometryMonitor
from geomonitor.probe.probe_set import ProbeSet


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
) -> None:
    """Measure saved checkpoints and write a history, as if a monitor had watched the training.

    On several GPUs or processes: torchrun --nproc-per-node 2 -m geomonitor.cli scan ...
    """
    rank = int(os.environ.get("RANK", "0"))
    monitor = _monitor(probe, layers, markers)
    network = _model(model)
    ordered = moments(checkpoints)
    if rank == 0:
        monitor.open_history(output / HISTORY_FILE)
    with Progress("measuring checkpoints", len(ordered), quiet=rank > 0) as progress:
        for verdict in measured(monitor, network, ordered):
            progress.advance()
            if verdict is not None:
                progress.line(f"decline: {headline(verdict)}")
    if rank == 0:
        show(f"{len(ordered)} checkpoints measured: {output / HISTORY_FILE}")


def _monitor(probe: str, layers: list[str] | None, markers: list[str] | None) -> GeometryMonitor:
    found = target(probe, "--probe")
    if not isinstance(found, (ProbeSet, GeometryMonitor)) and callable(found):
        found = own_code(probe, found)
    if isinstance(found, ProbeSet):
        names = [name for given in markers or ["default"] for name in MARKER_GROUPS.get(given, (given,))]
        panel = Panel() if set(names) & set(DEFAULT_WATCH) else None  # as a monitor watches; without these, nothing
        return GeometryMonitor(found, layers=layers or "penultimate", markers=names, panel=panel)
    if not isinstance(found, GeometryMonitor):
        raise InputError(
            f"--probe {probe} must be or return a ProbeSet or a GeometryMonitor; got {type(found).__name__}"
        )
    if layers or markers:
        raise InputError(f"--probe {probe} is a GeometryMonitor: choose its layers and markers there, not by options")
    return found


def _model(name: str) -> nn.Module:
    factory = target(name, "--model")
    network = factory if isinstance(factory, nn.Module) or not callable(factory) else own_code(name, factory)
    if not isinstance(network, nn.Module):
        raise InputError(f"--model {name} must make a torch.nn.Module; got {type(network).__name__}")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return network.to(device)
