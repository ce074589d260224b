"""A Trainer on two CPU processes with the callbacks on; run by test_two_ranks.py, prints what each rank saw."""

from __future__ import annotations

import sys

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor.records import Series
from geomonitor_integrations.lightning import GeometryCallback, GeometryEarlyStopping

STOP_STEP = 6


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    centers = torch.randn(3, 5, generator=generator)
    return TensorDataset(centers[labels] + torch.randn(96, 5, generator=generator), labels)


def low_from_stop_step(series: Series) -> gm.Verdict:
    low = bool(len(series.steps) and series.steps[-1] >= STOP_STEP)
    return gm.Verdict(low, series.layer, series.marker, 1.0, 2.0, 0.1, since_step=STOP_STEP, checks=1)


def main(directory: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    probe = gm.ProbeSet.from_dataset(dataset(), per_class=13)  # 39 points: the ranks get unequal parts
    options = {"directions": 30, "markers": "all", "on_error": "raise"}
    geometry = GeometryCallback(probe, detector=low_from_stop_step, **options)
    trainer = L.Trainer(
        max_epochs=5, accelerator="cpu", devices=2, strategy="ddp", callbacks=[geometry, GeometryEarlyStopping()],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=directory, log_every_n_steps=1,
    )  # fmt: skip
    model = Net()
    trainer.fit(model, DataLoader(dataset(), batch_size=16))
    last = geometry.monitor.history.series("penultimate", "dimension").values
    alone = gm.GeometryMonitor(probe, **options)
    if trainer.global_rank == 0:  # one process, the same weights: no group is left to share with
        torch.distributed.destroy_process_group()
        alone.measure(model, step=1)
        print("ALONE", repr(alone.history.series("penultimate", "dimension").values[-1].item()), flush=True)
    print("RANK", trainer.global_rank, trainer.global_step, repr(last[-1].item()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
