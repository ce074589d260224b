"""LightningCLI: every option of the callbacks from YAML, saved configurations that run again, and typos refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor_integrations.lightning import GeometryCallback, GeometryEarlyStopping

pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
CALLBACK = "geomonitor_integrations.lightning.GeometryCallback"
PROBE = {"class_path": "geomonitor.ValidationProbe", "init_args": {"classes": 4, "per_class": 10}}


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", self.training_step(batch, _))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Data(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        labels = torch.arange(160) % 4
        points = torch.randn(160, 8, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(8)[labels]
        return DataLoader(TensorDataset(points, labels), batch_size=16)

    val_dataloader = train_dataloader


def forward(model: Any, inputs: Tensor) -> Tensor:
    return model(inputs)


def send(verdict: gm.Verdict, text: str) -> None:
    raise AssertionError("no alarm in two epochs")


OPTIONS: dict[str, Any] = {
    "probe": PROBE, "layers": {"hidden": "head:input"}, "markers": ["dimension", "nc1"],
    "panel": {"watch": ["dimension"], "votes": 1}, "geometry": {"directions": 20, "seed": 3}, "every_n_epochs": 1,
    "name": "held_out", "allow_protocol_change": True, "figures_every_n": 0, "pool": "mean",
    "forward": f"{__name__}.forward", "on_alarm": [f"{__name__}.send"], "batch_size": 50, "max_overhead": 100.0,
    "on_error": "raise",
}  # fmt: skip


def run(tmp_path: Path, monkeypatch: Any, options: dict[str, Any] | Path, *more: str) -> LightningCLI:
    config = options
    if isinstance(options, dict):
        callbacks = [{"class_path": CALLBACK, "init_args": options},
                     {"class_path": CALLBACK.replace("Callback", "EarlyStopping"),
                      "init_args": {"layer": "hidden", "name": "held_out"}}]  # fmt: skip
        trainer = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
                   "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
                   "default_root_dir": str(tmp_path), "callbacks": callbacks}  # fmt: skip
        config = tmp_path / "given.yaml"
        config.write_text(yaml.safe_dump({"trainer": trainer}))
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", str(config), *more])
    return LightningCLI(Net, Data, seed_everything_default=0, save_config_kwargs={"overwrite": True})


@pytest.mark.filterwarnings("ignore:.*val_dataloader")
def test_every_option_from_yaml_and_the_saved_configuration_again(tmp_path, monkeypatch):
    done = run(tmp_path, monkeypatch, OPTIONS)
    geometry = next(c for c in done.trainer.callbacks if isinstance(c, GeometryCallback))
    assert any(isinstance(c, GeometryEarlyStopping) for c in done.trainer.callbacks)
    monitor = geometry.monitor
    assert monitor.geometry == gm.GeometryOptions(directions=20, seed=3)
    assert monitor.panel.watch == ("dimension",)
    assert monitor.history.series("hidden", "dimension").steps.tolist() == [10, 20]
    assert geometry.run.on_alarm == [send]
    saved = tmp_path / "config.yaml"
    again = run(tmp_path, monkeypatch, saved)
    second = next(c for c in again.trainer.callbacks if isinstance(c, GeometryCallback))
    assert second.monitor.protocol == monitor.protocol
    first, other = (m.history.series("hidden", "dimension").values for m in (monitor, second.monitor))
    assert first.tolist() == other.tolist()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("geometry", {"direction": 20}, "direction"),
        ("panel", {"watch": ["dimension"], "vote": 1}, "vote"),
        ("every_n_epoch", 2, "every_n_epoch"),
        ("every_n_epochs", "often", "every_n_epochs"),
    ],
)
def test_a_typo_in_yaml_is_refused(tmp_path, monkeypatch, capsys, option, value, message):
    with pytest.raises((SystemExit, ValueError)) as refused:  # by the parser, or by the object itself
        run(tmp_path, monkeypatch, {**OPTIONS, option: value})
    assert message in capsys.readouterr().err + str(refused.value)
