"""Runs on two real CPU processes in float64 for test_rank_runs.py; each rank writes what it measured.

``python -m tests.integrations.rank_runs DIRECTORY`` starts the one of ``ddp_spawn``, which starts its own processes.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric import Fabric
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor.history.records import Series
from geomonitor_integrations.lightning import GeometryCallback, GeometryEarlyStopping
from tests.options import grouped
from tests.processes import as_torchrun_starts

STOP_STEP = 6
PER_CLASS = 13  # of 3 classes: 39 points, so the ranks get unequal parts
OPTIONS: dict[str, Any] = {"directions": 30, "markers": "all", "on_error": "raise"}
PASSIVE = gm.ValidationProbe(classes=3, per_class=PER_CLASS)


def dataset(points: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(points) % 3
    centers = torch.randn(3, 5, generator=generator)
    return TensorDataset((centers[labels] + torch.randn(points, 5, generator=generator)).double(), labels)


def probe() -> gm.ProbeSet:
    return gm.ProbeSet.from_dataset(dataset(), per_class=PER_CLASS)


class Net(L.LightningModule):
    def __init__(self, *, sharded: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(5, 24).double(), nn.Linear(24, 3).double()
        self.sharded = sharded

    def configure_model(self) -> None:
        if self.sharded and self.device_mesh is not None:
            from torch.distributed.fsdp import fully_shard

            for part in (self.body, self.head, self):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_loss", self.training_step(batch, 0), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def low_from_stop_step(series: Series) -> gm.Verdict:
    low = bool(len(series.steps) and series.steps[-1] >= STOP_STEP)
    return gm.Verdict(low, series.layer, series.marker, 1.0, 2.0, 0.1, since_step=STOP_STEP, checks=1)


def latest(monitor: gm.GeometryMonitor) -> dict[str, float]:
    """Values of the last measurement by key."""
    last = max(record.step for record in monitor.history)
    return {
        r.key: r.value
        for r in monitor.history
        if r.step == last and r.layer and r.marker not in ("alarm", "notice", "judged", "drift")
    }


def alone(weights: dict[str, Tensor], *, passive: bool) -> dict[str, float]:
    """The same weights, measured by a single process."""
    model = Net().eval()
    model.load_state_dict(weights)
    monitor = gm.GeometryMonitor(PASSIVE if passive else probe(), **grouped(detector=None, **OPTIONS))
    validation = None
    if passive:
        validation = monitor.validation_pass(model, dataset_length=len(VALIDATION))
        for batch in DataLoader(VALIDATION, batch_size=16):
            with validation.batch(batch), torch.no_grad():
                model(batch[0])
    monitor.measure(model, step=1, validation=validation)
    return latest(monitor)


VALIDATION = dataset(61)  # an odd number: the sampler repeats one sample


def trained(strategy: Any, directory: str, *, passive: bool = False, sharded: bool = False) -> None:
    geometry = GeometryCallback(PASSIVE if passive else probe(), **grouped(detector=low_from_stop_step, **OPTIONS))
    trainer = L.Trainer(
        max_epochs=5, accelerator="cpu", devices=2, strategy=strategy, callbacks=[GeometryEarlyStopping(), geometry],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=directory, log_every_n_steps=1,
    )  # fmt: skip
    model = Net(sharded=sharded)
    trainer.callbacks.append(Reporter(directory))  # in the processes of ddp_spawn, too
    trainer.fit(model, DataLoader(dataset(), batch_size=16), DataLoader(VALIDATION, batch_size=16))


class Reporter(L.Callback):
    """Writes at the end of the fit, in the process that has fitted."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        assert trainer.world_size == 2
        own = next(callback for callback in trainer.callbacks if isinstance(callback, GeometryCallback))
        state = pl_module.state_dict()
        weights = {
            name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()
        }
        told(self.directory, trainer.global_rank, trainer.global_step, latest(own.monitor), weights)


def told(directory: str, rank: int, step: int, values: dict[str, float], weights: dict[str, Tensor]) -> None:
    # A file each: long lines of two processes run into each other on one pipe.
    Path(directory, f"rank_{rank}.json").write_text(json.dumps([step, values]))
    if rank == 0:
        torch.save({name: value.detach().clone() for name, value in weights.items()}, Path(directory, "weights.pt"))


def fabric(directory: str) -> None:
    """A raw loop."""
    lightning = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    lightning.launch()
    assert lightning.world_size == 2
    net = Net()
    model, optimizer = lightning.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    loader = lightning.setup_dataloaders(DataLoader(dataset(), batch_size=16))
    monitor = gm.GeometryMonitor(probe(), **grouped(detector=low_from_stop_step, **OPTIONS))
    step = 0
    for epoch in range(5):
        for batch in loader:
            optimizer.zero_grad()
            lightning.backward(nn.functional.cross_entropy(model(batch[0]), batch[1]))
            optimizer.step()
            step += 1
        monitor.measure(model, step=step, epoch=epoch)
        if monitor.verdicts["penultimate"].declined:
            break
    told(directory, lightning.global_rank, step, latest(monitor), net.state_dict())


def fsdp2(directory: str) -> None:
    trained(ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1), directory, sharded=True)


KINDS: dict[str, Callable[[str], None]] = {
    "ddp": lambda directory: trained("ddp", directory),
    "ddp_passive": lambda directory: trained("ddp", directory, passive=True),
    "fsdp2": fsdp2,
    "fabric": fabric,
}
"""What two processes that are there run; ``ddp_spawn`` starts its own."""


def all_kinds(rank: int, kinds: list[str], directory: str, port: int) -> dict[str, str]:
    """What each kind has printed, one after the other in the same processes, whose imports take longer than a run."""
    as_torchrun_starts(rank, port)
    warnings.simplefilter("ignore")
    printed = {}
    for kind in kinds:
        with contextlib.redirect_stderr(io.StringIO()) as lines:
            KINDS[kind](f"{directory}/{kind}")
        printed[kind] = lines.getvalue()
    return printed


if __name__ == "__main__":
    torch.set_num_threads(1)
    trained("ddp_spawn", sys.argv[1])
