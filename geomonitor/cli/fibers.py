"""``geomonitor fibers``."""

from __future__ import annotations

import copy
import importlib
import platform
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from geomonitor.cli.measured import model_of, monitor_of
from geomonitor.cli.targets import own_code, target
from geomonitor.cli.terminal import Progress, message, output
from geomonitor.decide.around_alarm import around_alarm
from geomonitor.decide.checkpoints import load_checkpoint, load_weights
from geomonitor.errors import InputError
from geomonitor.explain.at_alarm import checked_probe, pool_and_places, to_device
from geomonitor.explain.comparison import STRENGTHS, compare_fibers
from geomonitor.explain.layer import layer_features
from geomonitor.explain.priors import Prior
from geomonitor.explain.saving import room_for, save_images, save_numbers
from geomonitor.features.layers import resolve_layers
from geomonitor.history.runs import load_run
from geomonitor.measure.probe_pass import device_of
from geomonitor.plots.drawing import require_matplotlib
from geomonitor.plots.fibers import checked_images, plot_fibers

DOTS_PER_INCH = 110


def fibers(
    run: Annotated[Path, typer.Argument(help="directory of the run, where geometry.csv lies and the files go to")],
    *,
    model: Annotated[str, typer.Option(help="package.module:factory, a function or class that makes the model")],
    probe: Annotated[
        str,
        typer.Option(help="package.module:name of a ProbeSet, of a GeometryMonitor, or of a function that makes one"),
    ],
    prior: Annotated[str, typer.Option(help="package.module:name of a prior, or of a function that makes one")],
    before: Annotated[
        Path | None, typer.Option(help="checkpoint  [default: the last one before the run's alarm]")
    ] = None,
    after: Annotated[
        Path | None, typer.Option(help="checkpoint  [default: the first one from the run's alarm on]")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="layer  [default: that of the alarm, or penultimate]")] = None,
    per_class: Annotated[int, typer.Option(help="representatives of each class")] = 3,
    samples: Annotated[int, typer.Option(help="members of each fiber")] = 8,
    seed: Annotated[int, typer.Option(help="of the noise")] = 0,
    steps: Annotated[int, typer.Option(help="of the reverse process")] = 50,
    max_mib: Annotated[float, typer.Option(help="size of fibers.npz at most")] = 2.0,
) -> None:
    """Draw inputs that a layer maps to equal features, before and after a change.

    Writes fibers.png, fibers.json and fibers.npz into the directory of the run. Model, probe set and prior take images
    of one size and range.
    """
    require_matplotlib()
    loaded = load_run(run)
    folder = loaded.path.parent
    if before is None or after is None:
        around = around_alarm(loaded, layer)
        before, after = before or around.before(), after or around.after()
        layer = layer or around.alarm.layer
    layer = layer or "penultimate"
    networks = _networks(model, before, after)
    known, plausible = monitor_of(probe, None, None), _prior(prior, device_of(networks[0]))
    pool, places = _points(known.probe, plausible, per_class)
    room_for(len(places), samples, pool[0].numel(), max_mib)  # refused now, and not after minutes of drawing
    place = str(resolve_layers(networks[0], known.layers).get(layer, layer))  # an alarm has the alias of its layer
    how: dict[str, Any] = {"pool": known.pool, "forward": known.forward}
    total = 2 * len(STRENGTHS) * len(places) * samples
    with (
        layer_features(networks[0], place, **how) as features_before,
        layer_features(networks[1], place, **how) as features_after,
        Progress("drawing members of fibers", total, quiet=False) as progress,
    ):
        found = compare_fibers(
            features_before, features_after, plausible, pool, places, per_input=samples, seed=seed, steps=steps,
            progress=progress.advance,
        )  # fmt: skip
    settings = {
        "before": str(before), "after": str(after), "layer": layer, "model": model, "probe": probe, "prior": prior,
        "fingerprint": getattr(known.probe, "fingerprint", ""), "per_class": per_class, "samples": samples,
        "seed": seed, "steps": steps, "device": str(device_of(networks[0])),
    }  # fmt: skip
    versions = {name: importlib.import_module(name).__version__ for name in ("geomonitor", "torch")}
    versions["python"] = platform.python_version()
    save_numbers(folder / "fibers.json", found, settings=settings, versions=versions)
    left_out = save_images(folder / "fibers.npz", found, low=plausible.low, high=plausible.high, max_mib=max_mib)
    picture = plot_fibers(found, low=plausible.low, high=plausible.high)
    picture.savefig(folder / "fibers.png", dpi=DOTS_PER_INCH)
    if left_out:
        message("note", left_out)
    if found.note:
        message("note", f"the loss at which both are compared: {found.note}")
    output(f"{folder / 'fibers.png'}, fibers.json, fibers.npz: {before} against {after}")
    output(found.sentence)


def _networks(name: str, before: Path, after: Path) -> list[nn.Module]:
    """The model with the weights of each checkpoint."""
    first = model_of(name)
    second = copy.deepcopy(first)
    for network, path in ((first, before), (second, after)):
        load_weights(network, load_checkpoint(path))
    return [first, second]


def _prior(name: str, device: torch.device) -> Prior:
    """The prior that ``--prior`` names, on the device of the model."""
    found = target(name, "--prior")
    if not isinstance(found, Prior) and callable(found):
        found = own_code(name, found)
    if not isinstance(found, Prior):
        raise InputError(
            f"--prior {name} must be or return a FlowPrior, DiffusionPrior, DiffusersPrior or an object of the Prior "
            f"protocol; got {type(found).__name__}"
        )
    checked_images(found.shape)
    to_device(found, device)
    return found


def _points(probe: Any, prior: Prior, per_class: int) -> tuple[Tensor, Tensor]:
    """All points of the probe set, and the places of the representatives: the first of each class."""
    probe = checked_probe(probe)
    if not 1 <= per_class <= probe.per_class:
        raise InputError(f"--per-class must be 1 to {probe.per_class}, the points of a class; got {per_class}")
    return pool_and_places(probe, prior, per_class)
