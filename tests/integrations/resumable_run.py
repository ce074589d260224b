"""A run whose representation declines, that kills itself where it is told to and can be resumed; see test_resume.py.

What a step trains on depends on the number of the step alone, so that a run that is cut anywhere and resumed does what
the unbroken run does, bit by bit, also where Lightning starts an epoch's data over.
"""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor_integrations.lightning import GeometryCallback, GeometryEarlyStopping
from tests.options import grouped
from tests.processes import FORKSERVER

BATCHES, EPOCHS, DECLINE_STEP, STOP_STEP = 4, 12, 26, 32
"""batches an epoch, epochs at the most, first step of the decline, where the early stopping of every epoch stops"""


class Cut(NamedTuple):
    """Where the process gets its SIGKILL."""

    hook: str
    """of Lightning: it comes after our callback's and before that of the checkpoints"""
    step: int


class Plan(NamedTuple):
    """A run: how often it measures, validates and saves."""

    cadence: dict[str, int]
    validate: bool = True
    save_every_n_steps: int | None = None
    """by default it saves after each epoch, or validation"""


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.register_buffer("gain", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * self.gain)

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, y = points(self.global_step)
        return nn.functional.cross_entropy(self(x), y)

    def on_train_batch_start(self, *_: Any) -> None:
        if self.global_step >= DECLINE_STEP:
            self.gain[2:] = 0.01

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


class ValidatedNet(Net):
    def validation_step(self, batch: Any, _: int) -> None:
        pass


class Killer(Callback):
    def __init__(self, cut: Cut) -> None:
        def kill(trainer: L.Trainer, *_: Any, **__: Any) -> None:
            if trainer.global_step == cut.step and not trainer.sanity_checking:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(self, cut.hook, kill)


def points(seed: int, count: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return 2 * torch.eye(3, 8)[labels] + torch.randn(count, 8, generator=generator), labels


def run(directory: str, plan: Plan, cut: Cut | None, **options: Any) -> None:
    """Train from ``last.ckpt`` on, if there is one, and leave what the callback knows at the end in ``result.json``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = Path(directory)
    probe = gm.ProbeSet.from_dataset(TensorDataset(*points(10_000, 60)), per_class=15)
    detector = gm.DropFromReference(drop=0.15, warmup_checks=4, settled=0.075)
    own = {"directions": 10, "markers": ["dimension", "participation_ratio"], "detector": detector, "on_error": "raise"}
    options = own | options
    geometry = GeometryCallback(probe, **plan.cadence, **grouped(watch=["participation_ratio"], **options))
    saving = {"every_n_train_steps": plan.save_every_n_steps} if plan.save_every_n_steps else {"every_n_epochs": 1}
    keeper = ModelCheckpoint(folder, save_last=True, **saving)
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=1 if plan.validate else 0,
        callbacks=[geometry, GeometryEarlyStopping(), keeper, *([Killer(cut)] if cut else [])],
    )  # fmt: skip
    loader = DataLoader(TensorDataset(torch.arange(BATCHES)))
    last = folder / "last.ckpt"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(
            (ValidatedNet if plan.validate else Net)(),
            loader, loader if plan.validate else None, ckpt_path=last if last.exists() else None,
        )  # fmt: skip
    stopper = next(callback for callback in trainer.callbacks if isinstance(callback, GeometryEarlyStopping))
    kept = [r for r in geometry.monitor.history if r.layer]  # the rest are times, costs, and that it was resumed
    result = {
        "records": [[repr(part) for part in record._replace(time=0.0)] for record in kept],
        "verdicts": {layer: repr(verdict) for layer, verdict in geometry.monitor.verdicts.items()},
        "stopped_at": trainer.global_step,
        "stopped_because": stopper.stopping_reason_message,
        "alarms_told": [str(w.message) for w in told if issubclass(w.category, gm.GeometryDeclineWarning)],
        "said": [str(w.message) for w in told if w.category is gm.GeomonitorWarning],
    }
    (folder / "result.json").write_text(json.dumps(result))


def in_a_process(directory: Path, plan: Plan, cut: Cut | None = None, **options: Any) -> dict[str, Any]:
    """Result of ``run`` in a process of its own; empty where it was killed."""
    process = FORKSERVER.Process(target=run, args=(str(directory), plan, cut), kwargs=options)
    process.start()
    process.join(timeout=120)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("the run did not end within 120 s")
    assert process.exitcode == (-signal.SIGKILL if cut else 0)
    return {} if cut else json.loads((directory / "result.json").read_text())
