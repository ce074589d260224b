"""What a plain ModelCheckpoint keeps that monitors a marker: a small network that learns three classes, healthily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor_integrations.lightning import GeometryCallback


class Learner(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(12, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def kept_by_a_plain_checkpoint(folder: Path, marker: str, mode: str) -> str:
    """Name of the file that ``ModelCheckpoint(monitor="geometry/penultimate/<marker>")`` keeps of ten epochs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    data = TensorDataset(2 * torch.eye(3, 12)[labels] + torch.randn(240, 12, generator=generator), labels)
    geometry = GeometryCallback(gm.ProbeSet.from_dataset(data, per_class=20), figures_every_n=0)
    keeper = ModelCheckpoint(folder, monitor=f"geometry/penultimate/{marker}", mode=mode, filename="{epoch}")
    trainer = L.Trainer(
        max_epochs=10, accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[geometry, keeper], log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Learner(), DataLoader(data, batch_size=24))
    return Path(keeper.best_model_path).name
