"""Monitor and models of a command that measures: ``scan`` and ``rank``."""

from __future__ import annotations

import os

import torch
from torch import nn

from geomonitor.alarms.panel import DEFAULT_WATCH, Panel
from geomonitor.cli.targets import own_code, target
from geomonitor.errors import InputError
from geomonitor.markers import MARKER_GROUPS
from geomonitor.monitor import GeometryMonitor
from geomonitor.probe.probe_set import ProbeSet


def monitor_of(probe: str, layers: list[str] | None, markers: list[str] | None) -> GeometryMonitor:
    """The monitor that ``--probe`` names, or one on the probe set that it names."""
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


def model_of(name: str) -> nn.Module:
    """The model that ``--model`` names, on this process's GPU if there is one."""
    factory = target(name, "--model")
    network = factory if isinstance(factory, nn.Module) or not callable(factory) else own_code(name, factory)
    if not isinstance(network, nn.Module):
        raise InputError(f"--model {name} must make a torch.nn.Module; got {type(network).__name__}")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return network.to(device)
