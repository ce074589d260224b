"""Unusual training loops: what was valid at the start never ends the run, and no missing measurement is silent."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import geomonitor as gm
from geomonitor_integrations.lightning import GeometryCallback

pytestmark = pytest.mark.filterwarnings("ignore:`training_step` returned `None`", "ignore:.*configure_optimizers.*None")


def data(count: int = 160, seed: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return TensorDataset(torch.randn(count, 8, generator=generator) + 3 * torch.eye(8)[labels], labels)


def loader(dataset: Any = None, **options: Any) -> DataLoader:
    return DataLoader(data() if dataset is None else dataset, batch_size=16, **options)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 4)
        self.trained = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, _: int) -> Tensor:
        self.trained += 1
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class ByHand(Net):
    """Steps several optimisers by hand, those of Lightning or its own."""

    optimisers = 2
    own = False

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        self.mine = [torch.optim.SGD(self.parameters(), lr=0.01) for _ in range(self.optimisers)]
        return self.mine

    def training_step(self, batch: Any, _: int) -> None:
        for optimizer in self.mine if self.own else self.optimizers():
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)


class OwnOptimiser(ByHand):
    """Lightning does not see its steps: ``global_step`` stays 0."""

    optimisers, own = 1, True


class NoOptimiser(Net):
    def configure_optimizers(self) -> None:
        return None


class Pair(torch.optim.SGD):
    """Keeps a pair as weight decay between steps."""

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["weight_decay"] = 0.0
        result = super().step(closure)
        self.param_groups[0]["weight_decay"] = (0.0, 0.1)
        return result


class PairedDecay(Net):
    def configure_optimizers(self) -> Any:
        return Pair(self.parameters(), lr=0.05)


class WithoutForward(L.LightningModule):
    """Its steps call the network that it holds, beside a loss and another part without parameters."""

    def __init__(self) -> None:
        super().__init__()
        net = Net()
        self.network, self.criterion = nn.Sequential(net.body, net.head), nn.CrossEntropyLoss()

    def training_step(self, batch: Any, _: int) -> Tensor:
        return self.criterion(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", self.criterion(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class NewHead(Net):
    """Replaces its head at the third epoch by one of another name."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 2:
            self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.05)


class AddedHead(Net):
    """Class-incremental training: at the third epoch a second head comes, and feeds the output."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(16, 4)])
        del self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[-1](self.body(x))

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 2:
            self.heads.append(nn.Linear(16, 4))


def fit(path: Path, geometry: GeometryCallback, module: Any, train: Any = None, **options: Any) -> L.Trainer:
    trainer = L.Trainer(
        callbacks=[geometry], default_root_dir=path, accelerator="cpu",
        **{"max_epochs": 3, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
           "enable_model_summary": False, "log_every_n_steps": 1} | options,
    )  # fmt: skip
    trainer.fit(module, loader() if train is None else train, loader(data(seed=2)))
    return trainer


def active(**options: Any) -> GeometryCallback:
    probe = gm.ProbeSet.from_dataset(data(seed=2), per_class=10)
    return GeometryCallback(probe, **{"geometry": {"directions": 20}, "markers": ["dimension", "nc1"]} | options)


def passive(**options: Any) -> GeometryCallback:
    probe = gm.ValidationProbe(classes=4, per_class=10)
    return GeometryCallback(probe, **{"geometry": {"directions": 20}, "markers": ["dimension", "nc1"]} | options)


def steps(geometry: GeometryCallback) -> list[int]:
    series = geometry.monitor.history.series("penultimate", "dimension")
    return [step for step, value in zip(series.steps.tolist(), series.values, strict=True) if math.isfinite(value)]


@pytest.mark.parametrize("module", [NoOptimiser, PairedDecay, NewHead, OwnOptimiser, ByHand])
def test_every_epoch_is_measured_whatever_the_optimiser(tmp_path, module):
    geometry = active()
    trainer = fit(tmp_path, geometry, module())
    assert steps(geometry) == [10, 20, 30]
    assert trainer.current_epoch == 3


@pytest.mark.parametrize("kind", [active, passive])
@pytest.mark.parametrize("layers", ["penultimate", "output"])
def test_a_module_without_forward_is_measured_as_the_network_that_it_holds(tmp_path, kind, layers):
    options, found = {"markers": ["dimension", "nc1", "accuracy", "mean_norm"], "layers": layers}, []
    for module in (Net, WithoutForward):
        geometry = kind(**options)
        fit(tmp_path / module.__name__, geometry, module())
        found.append(
            {name: geometry.monitor.history.series(layers, name).values.tolist() for name in options["markers"]}
        )
    assert found[0] == found[1]
    assert np.isfinite(list(found[0].values())).all()
    if layers == "penultimate":
        assert geometry.monitor.protocol["resolved"] == {"penultimate": "network.1:input"}


def test_a_module_without_forward_and_with_two_networks_is_a_question():
    module = WithoutForward()
    module.teacher = nn.Linear(8, 4)
    monitor = gm.GeometryMonitor(
        gm.ProbeSet.from_dataset(data(), per_class=10), markers=["nc1"], panel=None, on_error="raise"
    )
    with pytest.raises(gm.MeasurementError, match=r"WithoutForward cannot be called .* Give forward="):
        monitor.measure(module, step=0)


def test_a_head_that_comes_in_mid_run_does_not_end_it(tmp_path):
    geometry = active()
    with pytest.warns(gm.GeomonitorWarning, match="the model has changed, and so has what 'penultimate' is.*heads.1"):
        trainer = fit(tmp_path, geometry, AddedHead(), max_epochs=5)
    assert trainer.current_epoch == 5
    assert steps(geometry) == [10, 20, 30, 40, 50]  # of the head that gives the output


@pytest.mark.parametrize("module", [Net, ByHand, OwnOptimiser])
@pytest.mark.parametrize("cadence", [{}, {"every_n_steps": 4}])
def test_one_axis_for_all_curves(tmp_path, module, cadence):
    geometry, logger = active(**cadence), L.pytorch.loggers.CSVLogger(tmp_path)
    trainer = fit(tmp_path, geometry, module(), logger=logger, max_epochs=2)
    with Path(trainer.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    curves = {name: [int(r["step"]) for r in rows if r.get(name)] for name in ("train_loss", geometry_key())}
    assert curves["train_loss"] == list(range(20))
    assert curves[geometry_key()] == ([3, 7, 11, 15, 19] if cadence else [9, 19])
    assert [step + 1 for step in curves[geometry_key()]] == steps(geometry)


def geometry_key() -> str:
    return "geometry/penultimate/dimension"


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        points = data()
        while True:
            yield from (points[place] for place in range(len(points)))


@pytest.mark.parametrize(
    ("own", "options", "expected"),
    [
        ({}, {"val_check_interval": 0.5}, [5, 10, 15, 20, 25, 30]),
        ({}, {"val_check_interval": 7, "check_val_every_n_epoch": None}, [7, 14, 21, 28]),
        ({"every_n_epochs": 2}, {"check_val_every_n_epoch": 2, "max_epochs": 6}, [20, 40, 60]),
        ({"every_n_steps": 12}, {"val_check_interval": 0.5}, [5, 20]),
    ],
)
def test_passive_mode_measures_whenever_a_validation_ends(tmp_path, own, options, expected):
    geometry = passive(**own)
    fit(tmp_path, geometry, Net(), num_sanity_val_steps=0, **options)
    assert steps(geometry) == expected


def test_passive_mode_on_an_endless_stream(tmp_path):
    geometry = passive()
    fit(tmp_path, geometry, Net(), loader(Endless()), max_epochs=-1, max_steps=45, val_check_interval=10)
    assert steps(geometry) == [10, 20, 30, 40]


def test_active_mode_on_an_endless_stream_measures_at_its_end(tmp_path):
    geometry = active()
    fit(tmp_path, geometry, Net(), loader(Endless()), max_epochs=-1, max_steps=25, val_check_interval=10)
    assert steps(geometry) == [25]


def test_a_run_without_a_measurement_says_so_at_its_end(tmp_path):
    geometry = active(every_n_steps=1000)
    with pytest.warns(gm.GeomonitorWarning, match="not measured once in this run: every_n_steps=1000"):
        fit(tmp_path, geometry, Net())
    assert steps(geometry) == []


class Several(Net):
    """Validates batches that hold a batch of each loader."""

    def validation_step(self, batch, index):
        batches = list(batch.values()) if isinstance(batch, dict) else batch
        self.log("val_loss", sum(self.loss(each) for each in batches))


class OneAfterTheOther(Net):
    def validation_step(self, batch, index, dataloader_idx=0):
        self.log("val_loss", self.loss(batch))


class OneOfSeveral(Net):
    def validation_step(self, batch, index):
        self.log("val_loss", self.loss(batch[0]))


def combined(mode, kind=list):
    loaders = [loader(data(seed=2)), loader(data(seed=3))]
    return CombinedLoader(loaders if kind is list else dict(zip("ab", loaders, strict=True)), mode)


def fit_combined(module, probe, loaders, tmp_path):
    callback = GeometryCallback(probe, markers=["rankme"], panel=None)
    trainer = L.Trainer(
        callbacks=[callback], default_root_dir=tmp_path, max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, loader(), loaders)
    return callback.monitor.history.series("penultimate", "rankme").values


@pytest.mark.parametrize(("mode", "kind"), [("max_size_cycle", list), ("min_size", dict), ("max_size", list)])
def test_combined_validation_loaders_are_refused_before_the_first_batch(tmp_path, mode, kind):
    module = Several()
    with pytest.raises(gm.InputError, match=r"the validation loaders are combined.*give the loaders as a list"):
        fit_combined(module, gm.ValidationProbe(classes=4, per_class=10), combined(mode, kind), tmp_path)
    assert module.trained == 0


def test_ways_out_of_combined_validation_loaders(tmp_path):
    probe = gm.ValidationProbe(classes=4, per_class=10)
    expected = fit_combined(OneAfterTheOther(), probe, [loader(data(seed=2)), loader(data(seed=3))], tmp_path)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(fit_combined(OneAfterTheOther(), probe, combined("sequential"), tmp_path), expected)
    named = gm.ValidationProbe(classes=4, per_class=10, labels=lambda batch: batch[0][1])
    np.testing.assert_array_equal(fit_combined(OneOfSeveral(), named, combined("max_size_cycle"), tmp_path), expected)
    chosen = gm.ProbeSet.from_dataset(data(seed=2), per_class=10)
    assert np.isfinite(fit_combined(Several(), chosen, combined("max_size_cycle"), tmp_path)).all()


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_a_shuffled_validation_is_refused_before_the_first_batch(tmp_path):
    module = Net()
    trainer = L.Trainer(
        callbacks=[passive()], default_root_dir=tmp_path, max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    with pytest.raises(gm.InputError, match="shuffle"):
        trainer.fit(module, loader(), loader(data(seed=2), shuffle=True))
    assert module.trained == 0
