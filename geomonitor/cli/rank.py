"""``geomonitor rank``."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from enum import Enum
from typing import Annotated, Any

import typer
from torch import nn

from geomonitor.cli.measured import model_of, monitor_of
from geomonitor.cli.targets import own_code, target
from geomonitor.cli.terminal import Progress, message, output, table
from geomonitor.decide.checkpoints import load_checkpoint, load_weights
from geomonitor.decide.rank import ACROSS, OWN_STUDY, PUBLISHED, Call, Candidate, Group, Job, measure_all
from geomonitor.decide.rank import rank as ranked
from geomonitor.errors import InputError
from geomonitor.monitor import GeometryMonitor
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.transfer import TransferProbe

NO_CALL = 1
"""Exit code: the best one differs from another one by less than the errors."""
ACROSS_ARCHITECTURES = 3
MARKERS = ("dimension", "utility", "accuracy")
TARGET_MARKERS = ("transfer_accuracy", "transfer_few_shot")


class Format(str, Enum):
    """Of what is printed."""

    table = "table"
    json = "json"
    csv = "csv"


def rank(
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Lightning .ckpt, state_dict .pt or .safetensors files")
    ] = None,
    *,
    models: Annotated[
        list[str],
        typer.Option("--model", help="package.module:factory of a finished model, or of the model of the checkpoints"),
    ],
    probe: Annotated[str, typer.Option(help="package.module:name of a ProbeSet, or of a function that makes one")],
    target_probe: Annotated[
        str | None,
        typer.Option("--target", help="package.module:name of a TransferProbe, or of a ProbeSet of new classes"),
    ] = None,
    layer: Annotated[str, typer.Option(help="layer to measure")] = "penultimate",
    same_architecture: Annotated[
        bool, typer.Option("--same-architecture", help="compare models whatever their classes and widths")
    ] = False,
    form: Annotated[Format, typer.Option("--format", help="table, json or csv")] = Format.table,
) -> None:
    """Order finished models by how well they should transfer to new classes; without --target within an architecture.

    Exit code 0: the best one is called; 1: it differs from another one by less than the errors; 3: several
    architectures, which are not compared. On several GPUs: torchrun --nproc-per-node 2 -m geomonitor.cli rank ...
    """
    first = os.environ.get("RANK", "0") == "0"
    monitor = _monitor(probe, target_probe, layer)
    jobs = _jobs(models, checkpoints or [])
    if len(jobs) < 2:
        raise InputError(f"there is nothing to compare: give two models or checkpoints; got {len(jobs)}")
    candidates = []
    with Progress("measuring models", len(jobs), quiet=not first or form is not Format.table) as progress:
        for candidate in measure_all(monitor, jobs, one_architecture=same_architecture):
            candidates.append(candidate)
            progress.advance()
    if not first:
        return
    by_target = target_probe is not None
    groups = ranked(candidates, by_target=by_target)
    {Format.table: _print_table, Format.json: _print_json, Format.csv: _print_csv}[form](groups, by_target)
    if len(groups) > 1:
        raise typer.Exit(ACROSS_ARCHITECTURES)
    if not groups[0].called:
        raise typer.Exit(NO_CALL)


def _monitor(probe: str, target_probe: str | None, layer: str) -> GeometryMonitor:
    known = monitor_of(probe, None, None)
    truth = None
    if target_probe is not None:
        found = target(target_probe, "--target")
        if not isinstance(found, (TransferProbe, ProbeSet)) and callable(found):
            found = own_code(target_probe, found)
        truth = TransferProbe(found) if isinstance(found, ProbeSet) else found
        if not isinstance(truth, TransferProbe):
            raise InputError(f"--target {target_probe} must be or return a TransferProbe or a ProbeSet")
    how: dict[str, Any] = {"geometry": known.geometry, "pool": known.pool, "batch_size": known.batch_size}
    return GeometryMonitor(
        known.probe, layers=layer if known.layers == "penultimate" else known.layers, markers=MARKERS, panel=None,
        forward=known.forward, truth=truth, on_error="raise", **how,
    )  # fmt: skip


def _jobs(models: list[str], checkpoints: list[str]) -> list[Job]:
    """A job for each model, or for each checkpoint, which is loaded into the first model that it fits."""
    if not checkpoints:
        return [Job(name, lambda name=name: model_of(name)) for name in models]  # type: ignore[misc]
    return [Job(path, lambda path=path: _loaded(path, models)) for path in checkpoints]  # type: ignore[misc]


def _loaded(path: str, models: list[str]) -> nn.Module:
    checkpoint, problems = load_checkpoint(path), []
    for name in models:
        model = model_of(name)
        try:
            load_weights(model, checkpoint)
        except InputError as error:
            problems.append(error)
        else:
            return model
    if len(problems) > 1:
        raise InputError(f"{path} fits none of the models {', '.join(models)}; {problems[0]}")
    raise problems[0]


def _print_table(groups: list[Group], by_target: bool) -> None:
    names = [*(TARGET_MARKERS if by_target else ()), *MARKERS]
    titles = {"model": "left", **dict.fromkeys(names, "right"), **({"LogME": "right"} if by_target else {})}
    for group in groups:
        if group.architecture:
            output(f"\n{group.architecture}")
        calls = [_words(call, by_target) for call in group.against_best]
        rows = []
        for model, call in zip(group.models, ["", *calls], strict=True):
            cells = [model.name, *(_cell(model, name) for name in names)]
            rows.append(([*cells, *([f"{model.logme:.4g}"] if by_target else []), call], None))
        table({**titles, "against the first": "left"}, rows)
        output(_summary(group, by_target))
    if by_target:
        output("Accuracy on these new classes is measured, not forecast; classes that choose a model flatter it.")
    else:
        output(f"\n{PUBLISHED}\n{OWN_STUDY}")
        if len(groups) > 1:
            message("no call across architectures", ACROSS)


def _summary(group: Group, by_target: bool) -> str:
    best = group.models[0].name
    if not group.against_best:
        return f"{best}: the only model of its architecture, nothing is called."
    if group.called:
        return f"{best} {'transfers better here' if by_target else 'is likelier to transfer to new classes'}."
    open_ = [call.second for call in group.against_best if call.better is None]
    return f"No call between {best} and {', '.join(open_)}: the difference is within two standard errors."


def _words(call: Call, by_target: bool) -> str:
    error = f" ± {call.error:.2g}" if math.isfinite(call.error) else ""
    size = f"{'' if by_target else 'ln '}{-call.difference:+.3g}{error}"
    return f"{size}, no call" if call.better is None else size


def _cell(model: Candidate, name: str) -> str:
    value, error = model.values.get(name, (math.nan, math.nan))
    return f"{value:.4g}" + (f" ± {error:.2g}" if math.isfinite(error) else "")


def _rows(groups: list[Group], by_target: bool) -> list[dict[str, Any]]:
    names, rows = [*(TARGET_MARKERS if by_target else ()), *MARKERS], []
    for group in groups:
        for place, model in enumerate(group.models):
            call = group.against_best[place - 1] if place else None
            row: dict[str, Any] = {"model": model.name, "architecture": group.architecture, "place": place + 1}
            for name in names:
                row[name], row[f"{name}_error"] = model.values.get(name, (math.nan, math.nan))
            row |= {"logme": model.logme} if by_target else {}
            row |= {"below_first": call and call.difference, "below_first_error": call and call.error}
            rows.append({**row, "called": bool(call and call.better is not None) if call else group.called})
    return rows


def _print_json(groups: list[Group], by_target: bool) -> None:
    rows = [{name: _plain(value) for name, value in row.items()} for row in _rows(groups, by_target)]
    rule = "transfer_accuracy on the target" if by_target else f"{PUBLISHED} {OWN_STUDY}"
    output(json.dumps({"rule": rule, "across_architectures": len(groups) > 1, "models": rows}, indent=2))


def _print_csv(groups: list[Group], by_target: bool) -> None:
    text, rows = io.StringIO(), _rows(groups, by_target)
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    output(text.getvalue().removesuffix("\n"))


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
