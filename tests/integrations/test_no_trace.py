"""With the callback and without it a run ends bit by bit alike: weights, optimiser, losses, random streams."""

from __future__ import annotations

import io
import random
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.ao import quantization
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

import geomonitor as gm
from geomonitor_integrations.lightning import GeometryCallback
from tests.options import grouped


def points(count: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    centers = torch.randn(3, 5, generator=generator)
    return TensorDataset(centers[labels] + torch.randn(count, 5, generator=generator), labels)


class Augmented(Dataset):
    """Draws from all three global streams, in the main process or in those of a DataLoader."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, label = self.dataset[index]
        return x * random.uniform(0.9, 1.1) + 0.1 * torch.randn(5) + float(np.random.randn()) / 10, label


class Net(L.LightningModule):
    """Dropout and batch norm; records every loss, draws random numbers in the training step."""

    def __init__(self, body: nn.Module | None = None, *, frozen_norm: bool = False) -> None:
        super().__init__()
        self.body = body or nn.Sequential(nn.Linear(5, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(24, 3)
        self.frozen_norm = frozen_norm
        self.losses: list[float] = []
        self.modes: set[tuple[bool, ...]] = set()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def on_train_epoch_start(self) -> None:
        if self.frozen_norm:
            self.body[1].eval()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        self.modes.add(tuple(module.training for module in self.body.modules()))
        loss = nn.functional.cross_entropy(self(batch[0] + 0.01 * torch.randn_like(batch[0])), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.losses.append(nn.functional.cross_entropy(self(batch[0]), batch[1]).item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Checkpointed(nn.Sequential):
    """Recomputes its activations, dropout included, in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False) if self.training else super().forward(x)


def body(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    return kind(nn.Linear(5, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2))


def trace(
    path: Any, callbacks: list[Any], *, make: Any = Net, augmented: bool = False, workers: int = 0, **options: Any
) -> tuple[bytes, Net, L.Trainer]:
    """All that a run leaves behind, as bytes."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    module = make()
    defaults = {
        "max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
    }  # fmt: skip
    trainer = L.Trainer(callbacks=callbacks, default_root_dir=path, **defaults | options)
    train = Augmented(points()) if augmented else points()
    trainer.fit(
        module,
        DataLoader(train, batch_size=16, shuffle=True, num_workers=workers),
        DataLoader(points(48), batch_size=16),
    )
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    left = [
        module.state_dict(), trainer.optimizers[0].state_dict(), module.losses, scaler and scaler.state_dict(),
        random.random(), float(np.random.rand()), torch.rand(3), sorted(module.modes),
    ]  # fmt: skip
    buffer = io.BytesIO()
    torch.save(left, buffer)
    return buffer.getvalue(), module, trainer


def geometry(probe: Any = None, **options: Any) -> GeometryCallback:
    probe = probe or gm.ProbeSet.from_dataset(points(), per_class=12)
    few = {"directions": 20, "markers": ("dimension", "participation_ratio", "nc1"), "on_error": "raise"}
    return GeometryCallback(probe, **grouped(**few | options))


def test_the_comparison_sees_a_single_random_number(tmp_path):
    class Drawing(L.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            torch.rand(1)

    assert trace(tmp_path, [Drawing()], max_epochs=1)[0] != trace(tmp_path, [], max_epochs=1)[0]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout and augmentation in worker processes": {"augmented": True, "workers": 2, "max_epochs": 2},
    "augmentation in the main process": {"augmented": True},
    "gradient accumulation": {"accumulate_grad_batches": 4},
    "validation four times an epoch": {"val_check_interval": 0.25},
    "bf16 mixed precision": {"precision": "bf16-mixed"},
    "gradient checkpointing": {"make": lambda: Net(body(Checkpointed))},
    "compiled module": {"make": lambda: Net(torch.compile(body(), backend="aot_eager"))},
    "partly frozen, by its modes": {"make": lambda: Net(frozen_norm=True)},
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_behind(tmp_path, name):
    without, *_ = trace(tmp_path, [], **CASES[name])
    watcher = geometry()
    monitored, module, _ = trace(tmp_path, [watcher], **CASES[name])
    assert monitored == without
    measured = watcher.monitor.history.series("penultimate", "dimension").values
    assert len(measured) >= 2
    assert np.isfinite(measured).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    if name.startswith("partly"):
        assert module.modes == {(True, True, False, True, True)}


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_steps": 2},
        {"max_overhead": 1e-6},
        {"probe": gm.ValidationProbe(classes=3, per_class=8)},
        {"markers": "all", "layers": ["penultimate", "body.2"]},
    ],
    ids=["between steps", "over budget", "passive", "all markers"],
)
@pytest.mark.filterwarnings("ignore:measuring takes:geomonitor.GeomonitorWarning")
def test_no_way_of_measuring_leaves_anything_behind(tmp_path, options, monkeypatch):
    monkeypatch.setattr("geomonitor.measure.budget.FREE_SECONDS", 0.0)
    assert trace(tmp_path, [geometry(**options)], augmented=True)[0] == trace(tmp_path, [], augmented=True)[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_nothing_is_left_behind_on_a_gpu(tmp_path, precision):
    options = {"accelerator": "gpu", "devices": 1, "precision": precision, "augmented": True}
    assert trace(tmp_path, [geometry()], **options)[0] == trace(tmp_path, [], **options)[0]


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, MemoryError])
def test_an_error_in_the_middle_of_the_probe_pass_leaves_nothing_behind(tmp_path, error):
    def forward(model: nn.Module, inputs: Tensor) -> Tensor:
        torch.rand(5)
        model(inputs)
        raise error("no memory left")

    without, *_ = trace(tmp_path, [])
    with pytest.warns(gm.GeomonitorWarning, match="no memory left"):
        failing, module, _ = trace(tmp_path, [geometry(forward=forward, on_error="warn")])
    assert failing == without
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_a_forward_with_side_effects_is_put_back_and_told_once(tmp_path):
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.seen = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen += 1
            return super().forward(x)

    without, plain, _ = trace(tmp_path, [], make=Counting)
    with pytest.warns(gm.GeomonitorWarning, match="put back") as told:
        monitored, module, _ = trace(tmp_path, [geometry()], make=Counting)
    assert monitored == without
    assert (
        module.seen == plain.seen == 29
    )  # 2 batches of the sanity check, 18 of training, 9 of validation; no measurement
    assert len([w for w in told if "changes its own state" in str(w.message)]) == 1


@pytest.mark.skipif(not hasattr(lightning_callbacks, "EMAWeightAveraging"), reason="this Lightning has no averaging")
@pytest.mark.parametrize("averaging_first", [True, False])
@pytest.mark.parametrize("passive", [True, False])
def test_weight_averaging_the_validated_weights_are_measured(tmp_path, averaging_first, passive):
    def run(with_geometry: bool) -> tuple[bytes, Any, list[Tensor]]:
        weights: list[Tensor] = []

        class Validated(L.Callback):
            """Sees the weights in the middle of the validation."""

            def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
                if not trainer.sanity_checking:
                    weights.append(pl_module.head.weight.detach().clone())

        probe = gm.ValidationProbe(classes=3, per_class=8) if passive else None
        watcher, averaging = geometry(probe), lightning_callbacks.EMAWeightAveraging(decay=0.9)
        callbacks = [averaging, watcher] if averaging_first else [watcher, averaging]
        callbacks = callbacks if with_geometry else [averaging]
        return trace(tmp_path, [Validated(), *callbacks])[0], watcher, weights

    without, *_ = run(False)
    monitored, watcher, weights = run(True)
    assert monitored == without
    measured = watcher.monitor.history.series("penultimate", "dimension").values
    assert len(measured) == 3
    assert not torch.equal(weights[0], weights[-1])
    assert measured.tolist() == _measured_with_averaging(tmp_path, passive)


def _measured_with_averaging(path: Any, passive: bool) -> list[float]:
    """Measured by hand in the middle of each validation, where the averaged weights are in place."""
    probe = gm.ValidationProbe(classes=3, per_class=8) if passive else gm.ProbeSet.from_dataset(points(), per_class=12)
    watcher = gm.GeometryMonitor(
        probe, geometry={"directions": 20}, markers=("dimension", "participation_ratio", "nc1")
    )

    class ByHand(L.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.sanity_checking or batch_idx:
                return
            validation = None
            if passive:
                validation = watcher.validation_pass(pl_module, dataset_length=48)
                with validation.batch(points(48).tensors):  # a DataLoader would draw a random number
                    pl_module(points(48).tensors[0])
            watcher.measure(pl_module, step=trainer.global_step, validation=validation)

    trace(path, [ByHand(), lightning_callbacks.EMAWeightAveraging(decay=0.9)])
    return watcher.history.series("penultimate", "dimension").values.tolist()


def logging_run(path: Any, callbacks: list[Any], how: str) -> list[dict[str, float]]:
    """What a run hands to its logger, geometry left out."""
    torch.manual_seed(0)
    handed: list[dict[str, float]] = []

    class Kept(Logger):
        name, version = "kept", "0"

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            kept = {
                key: float(value)
                for key, value in metrics.items()
                if not key.startswith(("geometry/", "geometry_cost/"))
            }
            if kept.keys() - {"epoch"}:
                handed.append({**kept, "at": float(step or 0)})

    class Logging(Net):
        def __init__(self) -> None:
            super().__init__()
            self.means = nn.ModuleDict({"fit": torchmetrics.MeanMetric(), "validation": torchmetrics.MeanMetric()})
            self.meters = {"norm": Meter()}

        def forward(self, x: Tensor) -> Tensor:
            norm = self.body(x).norm(dim=1).mean()
            if how == "log":
                self.log("norm", norm, on_step=True, on_epoch=True)
            elif how == "log_dict":
                self.log_dict({"norm": norm, "twice": 2 * norm}, on_step=False, on_epoch=True)
            elif how == "metric object":
                stage = "fit" if self.training else "validation"  # the probe pass is in evaluation mode
                self.means[stage](norm)
                self.log(f"norm_{stage}", self.means[stage], on_step=self.training, on_epoch=True)
            elif how == "logger":
                self.logger.log_metrics({"norm": norm.item()}, step=self.global_step)
            elif how == "print":
                self.print("norm", norm.item())
            elif how == "meter":
                self.meters["norm"].update(norm)
                self.log("norm", self.meters["norm"].mean)
            return super().forward(x)

    trace(path, callbacks, make=Logging, logger=Kept(), max_epochs=2)
    return handed


class Meter:
    """A running mean that is no module."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, value: Tensor) -> None:
        self.values.append(value.item())

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


@pytest.mark.filterwarnings("ignore:in evaluation mode:geomonitor.GeomonitorWarning")
@pytest.mark.parametrize("how", ["log", "log_dict", "metric object", "logger", "print", "meter"])
def test_what_forward_logs_is_that_of_training_and_validation(tmp_path, capsys, how):
    """At every third step in the middle of an epoch, so that the training step's own values are still to be logged."""
    without = logging_run(tmp_path, [], how)
    printed = capsys.readouterr().out
    assert any(name.startswith("norm") for metrics in without for name in metrics) or "norm" in printed
    assert logging_run(tmp_path, [geometry(every_n_steps=3)], how) == without
    assert capsys.readouterr().out == printed


def parametrised(change: Any) -> Any:
    """A network whose head computes its weight."""

    def make() -> Net:
        net = Net()
        net.head = change(net.head)
        return net

    return make


def quantised(head: nn.Linear) -> nn.Module:
    head.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    holder = nn.Sequential(head).train()
    return quantization.prepare_qat(holder, inplace=True)


class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * (1 + self.calls / 100)


def counting(head: nn.Linear) -> nn.Module:
    nn.utils.parametrize.register_parametrization(head, "weight", CountsCalls())
    return head


@pytest.mark.filterwarnings(
    "ignore:in evaluation mode:geomonitor.GeomonitorWarning",
    "ignore:.*weight_norm:FutureWarning",
    "ignore:.*ao.quantization:DeprecationWarning",
    "ignore:.*reduce_range:UserWarning",
)
@pytest.mark.parametrize("every_n_steps", [None, 2], ids=["each epoch", "between steps"])
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.orthogonal,
        counting,
        quantised,
    ],
    ids=lambda change: f"{change.__module__.rpartition('.')[2]}.{change.__name__}",
)
def test_a_head_that_computes_its_weight_leaves_nothing_behind(tmp_path, change, every_n_steps):
    options = {"layers": "head:input"} if change is quantised else {}
    if every_n_steps:
        options["every_n_steps"] = every_n_steps
    without, *_ = trace(tmp_path, [], make=parametrised(change))
    watcher = geometry(**options)
    assert trace(tmp_path, [watcher], make=parametrised(change))[0] == without
    assert watcher.monitor.history.measurements >= 3
