"""Runs on two CPU processes that decline and are restored, started by test_rank_checkpoint.py."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor_integrations.lightning import GeometryCallback, GeometryCheckpoint
from tests.processes import as_torchrun_starts

DECLINE_STEP = 9
"""The first low measurement; an epoch has three steps."""


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(5, 24), nn.Linear(24, 3)
        self.register_buffer("steps", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        self.steps.fill_(self.global_step + 1)
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def low_from_the_decline(series: gm.Series) -> gm.Verdict:
    low = [int(step) for step in series.steps if step >= DECLINE_STEP]
    since = low[0] if low else None
    return gm.Verdict(len(low) > 1, series.layer, series.marker, 1.0, 2.0, 0.1, since, None, len(low), 2)


def fitted(folder: Path, epochs: int) -> dict[str, Any]:
    """What this rank ends with, after a run that goes on from ``last.ckpt`` if there is one."""
    labels = torch.arange(96) % 3
    data = TensorDataset(torch.randn(96, 5, generator=torch.Generator().manual_seed(0)), labels)
    panel = gm.Panel(("participation_ratio",), low_from_the_decline)
    probe = gm.ProbeSet.from_dataset(data, per_class=8)
    geometry = GeometryCallback(probe, markers=["participation_ratio"], panel=panel, on_error="raise")
    keeper = GeometryCheckpoint(folder / "ckpt", save_last=True, restore=True)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=2, strategy="ddp", callbacks=[keeper, geometry], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
    )  # fmt: skip
    last = folder / "ckpt" / "last.ckpt"
    model = Net()
    trainer.fit(model, DataLoader(data, batch_size=16), ckpt_path=last if last.exists() else None)
    assert trainer.world_size == 2
    weights = {name: value.sum().item() for name, value in model.state_dict().items()}
    return {"weights": weights, "last_healthy": geometry.monitor.last_healthy, "step": trainer.global_step}


def all_runs(rank: int, runs: dict[str, tuple[int, ...]], folder: str, port: int) -> dict[str, list[dict[str, Any]]]:
    """Of each run what its parts end with; all in the same processes, whose start takes longer than a run."""
    as_torchrun_starts(rank, port)
    warnings.simplefilter("ignore")
    return {name: [fitted(Path(folder, name), epochs) for epochs in parts] for name, parts in runs.items()}
