"""A callback measures a regression: without labels, or with classes of quantile bins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor.errors import GeomonitorWarning
from geomonitor_integrations.lightning import GeometryCallback

X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
TRAIN, HELD_OUT = TensorDataset(X[:80], X[:80, 0]), TensorDataset(X[80:], X[80:, 0])


class Regression(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = nn.functional.mse_loss(self(batch[0])[:, 0], batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self(batch[0])[:, 0], batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def measured(callback: GeometryCallback, path: Path) -> set[str]:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False, log_every_n_steps=1, callbacks=[callback], default_root_dir=path,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(Regression(), DataLoader(TRAIN, 16), DataLoader(HELD_OUT, 16))
    return {record.marker for record in callback.monitor.history if record.value == record.value}


OPTIONS: dict[str, Any] = {"on_error": "raise", "figures_every_n": 0, "geometry": {"directions": 10}}


def test_bins(tmp_path: Path) -> None:
    probe = gm.ProbeSet.from_dataset(HELD_OUT, per_class=20, quantile_bins=3, train=TRAIN)
    found = measured(GeometryCallback(probe, **OPTIONS), tmp_path)
    assert {"dimension", "nc1", "participation_ratio"} <= found
    assert "accuracy" not in found


def test_the_validation_set_of_a_regression_has_no_labels(tmp_path: Path) -> None:
    callback = GeometryCallback("val", per_class=20, **OPTIONS)
    with pytest.warns(GeomonitorWarning, match=r"no classes \(numbers"):
        found = measured(callback, tmp_path)
    assert "participation_ratio" in found
    assert not {"dimension", "accuracy"} & found
