"""MonitoredRun in loops of Accelerate and Fabric: the recipes of docs/frameworks.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import geomonitor as gm
from tests.frameworks.common import (
    OPTIONS,
    OfRank,
    Weights,
    declining,
    digits,
    digits_model,
    digits_probe,
    framework,
    of_rank,
    parallel_options,
    records_of,
    require_curve_of_plain_loop,
    require_same_weights,
)

accelerate = framework("accelerate", "accelerate")
lightning = framework("lightning", "lightning")


@pytest.fixture(autouse=True)
def new_accelerator() -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def monitored(**options: Any) -> gm.MonitoredRun:
    return gm.MonitoredRun(gm.GeometryMonitor(digits_probe(), **{**OPTIONS, **options}))


def loader() -> DataLoader:
    return DataLoader(digits()[0], batch_size=100)


def with_accelerate(
    folder: Path, epochs: range, run: gm.MonitoredRun | None, *, weights: Weights | None = None, **options: Any
) -> nn.Module:
    accelerator = accelerate.Accelerator(cpu=True, project_dir=folder, **options)
    accelerator.init_trackers("digits")
    model, data = digits_model(), loader()
    model, optimizer, data = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), data)
    if run is not None:
        accelerator.register_for_checkpointing(run)
    if epochs.start:
        accelerator.load_state(folder / "checkpoint")
    step = epochs.start * len(data)
    if run is not None:
        run.start(model, folder, step=step)
    for epoch in epochs:
        torch.manual_seed(epoch)  # dropout, also of a run that was resumed
        model.train()
        for x, y in data:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            step += 1
        if run is not None and run.due_after_epoch(epoch):
            accelerator.log(run.measure(model, step=step, epoch=epoch, optimizers=[optimizer]), step=step)
        if weights is not None:
            weights.keep(step, accelerator.unwrap_model(model))
        accelerator.save_state(folder / "checkpoint")
        if run is not None and run.should_stop:
            break
    accelerator.end_training()
    return accelerator.unwrap_model(model)


def with_fabric(
    folder: Path, epochs: range, run: gm.MonitoredRun | None, *, weights: Weights | None = None, **options: Any
) -> nn.Module:
    fabric = lightning.Fabric(**{"accelerator": "cpu", "devices": 1, **options})
    fabric.launch()
    model, data = digits_model(), fabric.setup_dataloaders(loader())
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    if epochs.start:
        state = {"model": model, "optimizer": optimizer}
        rest = fabric.load(folder / "checkpoint.ckpt", state)
        if run is not None:
            run.load_state_dict(rest["geometry"])
    step = epochs.start * len(data)
    if run is not None:
        run.start(model.module, folder, step=step)  # the module without the precision of Fabric
    for epoch in epochs:
        torch.manual_seed(epoch)
        model.train()
        for x, y in data:
            optimizer.zero_grad()
            fabric.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            step += 1
        if run is not None and run.due_after_epoch(epoch):
            fabric.log_dict(run.measure(model.module, step=step, epoch=epoch, optimizers=[optimizer]), step=step)
        if weights is not None:
            weights.keep(step, model.module)
        state = {"model": model, "optimizer": optimizer, "geometry": {} if run is None else run.state_dict()}
        fabric.save(folder / "checkpoint.ckpt", state)
        if run is not None and run.should_stop:
            break
    return model.module


LOOPS = pytest.mark.parametrize("loop", [with_accelerate, with_fabric], ids=["accelerate", "fabric"])


@LOOPS
@pytest.mark.parametrize("precision", ["full", "bf16"])
def test_the_curve_is_that_of_a_plain_loop(tmp_path, loop, precision):
    run, weights = monitored(), Weights()
    mixed = {"mixed_precision": "bf16"} if loop is with_accelerate else {"precision": "bf16-mixed"}
    loop(tmp_path, range(3), run, weights=weights, **(mixed if precision == "bf16" else {}))
    require_curve_of_plain_loop(run, weights, digits_model(), [10, 20, 30])


@LOOPS
def test_weights_are_the_same_bits_with_and_without(tmp_path, loop):
    require_same_weights(loop(tmp_path / "a", range(2), None), loop(tmp_path / "b", range(2), monitored()))


@LOOPS
def test_cut_and_resumed_equals_unbroken(tmp_path, loop):
    unbroken, first, second = (monitored(panel=declining(35)) for _ in range(3))
    with pytest.warns(gm.GeometryDeclineWarning):
        whole = loop(tmp_path / "whole", range(5), unbroken)
    loop(tmp_path / "cut", range(2), first)
    with pytest.warns(gm.GeometryDeclineWarning):
        model = loop(tmp_path / "cut", range(2, 5), second)
    assert records_of(second) == records_of(unbroken)
    require_same_weights(model, whole)
    assert second.last_step == 40  # the decline at step 40 ended the run


def in_two_processes_of_accelerate(folder: str) -> OfRank:
    """A run of test_processes.py."""
    return in_parallel(with_accelerate, folder)


def in_two_processes_of_fabric(folder: str) -> OfRank:
    """A run of test_processes.py."""
    return in_parallel(with_fabric, folder, devices=2, strategy="ddp")


def in_parallel(loop: Any, folder: str, **options: Any) -> OfRank:
    texts: list[str] = []
    given = parallel_options(folder, texts)
    run = gm.MonitoredRun(
        gm.GeometryMonitor(digits_probe(), panel=given["panel"], **OPTIONS), on_alarm=given["on_alarm"]
    )
    model = loop(Path(folder), range(4), run, **options)
    assert run.last_step == 10
    return of_rank(run.monitor, model.state_dict(), texts)


@LOOPS
def test_wrong_use_is_refused_before_training(tmp_path, loop):
    with pytest.raises(gm.InputError, match="the model has no layer 'head'"):
        loop(tmp_path, range(1), monitored(layers="head"))
    assert not list(tmp_path.rglob("checkpoint*"))
