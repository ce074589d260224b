"""A project of LightningCLI whose probe set comes from its datamodule; all options are in config.yaml.

cd examples/lightning_cli
python train.py fit --config config.yaml
python train.py fit --config config.yaml --trainer.max_epochs 20 --print_config > mine.yaml
"""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset


class Digits(L.LightningDataModule):
    """1,797 digits, 8 x 8; the last 797 are held out."""

    def __init__(self, batch_size: int = 100) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        bunch = load_digits()
        self.digits = TensorDataset(torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(Subset(self.digits, range(1000)), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(Subset(self.digits, range(1000, 1797)), batch_size=self.batch_size)


class Classifier(L.LightningModule):
    """Two linear layers."""

    def __init__(self, width: int = 32, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.body, self.head = nn.Sequential(nn.Linear(64, width), nn.ReLU()), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


if __name__ == "__main__":
    LightningCLI(Classifier, Digits, seed_everything_default=0, save_config_kwargs={"overwrite": True})
