"""What goes wrong in real runs: the run goes on or is refused before it starts, and what happened is said."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import geomonitor as gm
from geomonitor_integrations.lightning import GeometryCallback, GeometryEarlyStopping
from tests.integrations.test_lightning import callback, dataset, declines_from, fit, loader, measured_steps, net

PL = SimpleNamespace(
    L=L, callbacks=callbacks, GeometryCallback=GeometryCallback, GeometryEarlyStopping=GeometryEarlyStopping
)
KEY = "geometry/penultimate/dimension"


def series_in(file: Path, layer: str = "penultimate") -> list[int]:
    return gm.History.load(file).series(layer, "dimension").steps.tolist()


def saving(path: Path) -> callbacks.ModelCheckpoint:
    return callbacks.ModelCheckpoint(path, save_last=True, every_n_epochs=1)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_run_that_cannot_write_trains_on_and_keeps_its_history_in_checkpoints(tmp_path):
    (tmp_path / "in_the_way").touch()
    geometry = callback(PL, directory=tmp_path / "in_the_way" / "below")
    with pytest.warns(gm.GeomonitorWarning, match="cannot be written") as told:
        trainer, _ = fit(PL, tmp_path, [geometry, saving(tmp_path)], enable_checkpointing=True)
    assert len([w for w in told if w.category is gm.GeomonitorWarning]) == 1
    assert trainer.global_step == 18
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["GeometryCallback"]["history"]
    assert len(saved["values"]) == len(geometry.monitor.history) > 15


def named_pair(detector: Any = None) -> list[Any]:
    own = callback(PL, name="held_out", layers={"hidden": "body"}, detector=detector)
    return [callback(PL), own, GeometryEarlyStopping("hidden", name="held_out")]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_two_callbacks_on_one_trainer_keep_apart_and_resume(tmp_path):
    first = named_pair(declines_from(999))
    trainer, _ = fit(PL, tmp_path, [*first, saving(tmp_path)], max_epochs=1, enable_checkpointing=True)
    own = {"geometry_cost/seconds", KEY, "geometry/penultimate/alarm"}
    assert own | {"geometry_cost/held_out/seconds", "geometry/held_out/hidden/dimension"} <= set(
        trainer.callback_metrics
    )
    again = named_pair(declines_from(12))
    with pytest.warns(gm.GeometryDeclineWarning, match="'hidden'"):
        trainer, _ = fit(PL, tmp_path, again, max_epochs=4, ckpt=tmp_path / "last.ckpt")
    assert trainer.global_step == 12
    assert again[2].stopping_reason_message.startswith(
        "geometry early stopping: The representation of 'hidden' has lost 50 %"
    )
    assert series_in(tmp_path / "geometry.csv") == series_in(tmp_path / "geometry_held_out.csv", "hidden") == [6, 12]
    assert sorted(p.name for p in tmp_path.glob("geometry*.csv")) == ["geometry.csv", "geometry_held_out.csv"]


def test_two_callbacks_without_names_are_refused_before_training(tmp_path):
    with pytest.raises(RuntimeError, match=r"more than one stateful callback of type `GeometryCallback`.*state_key"):
        fit(PL, tmp_path, [callback(PL), callback(PL, layers={"hidden": "body"})])


def test_an_early_stopping_of_a_name_that_nobody_has_is_refused(tmp_path):
    with pytest.raises(gm.InputError, match="needs a GeometryCallback of the name 'held_uot'"):
        fit(PL, tmp_path, [callback(PL, name="held_out"), GeometryEarlyStopping(name="held_uot")])


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", "a\n", "a\\b", "a:b", " "])
def test_a_name_that_could_lead_out_of_the_directory_is_refused(name):
    with pytest.raises(gm.InputError, match="name must be"):
        callback(PL, name=name)


class Writes:
    """Paths that Python is asked to write, rename or make while it is on."""

    def __init__(self) -> None:
        self.on, self.paths = False, set()
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event == "open" and isinstance(args[0], (str, bytes)):
            writes = any(c in (args[1] or "") for c in "wax+") or args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            self.paths |= {os.path.realpath(os.fsdecode(args[0]))} if writes else set()
        elif self.on and event in ("os.rename", "os.mkdir", "os.symlink", "os.link"):
            self.paths |= {os.path.realpath(os.fsdecode(p)) for p in args[:2] if isinstance(p, (str, bytes, Path))}


def test_names_from_the_configuration_reach_no_path(tmp_path):
    run = tmp_path / "a" / "b" / "run"
    hostile = "..\\..\\evil ../evil".replace("/", "\N{DIVISION SLASH}")
    with pytest.raises(gm.InputError, match="has a '/'"):
        fit(PL, run, [callback(PL, layers={"../../evil": "body"})])
    with pytest.raises(gm.InputError, match="a word without '/'"):
        callback(PL, shifts={"../../evil": lambda x: x})
    geometry = callback(PL, layers={hostile: "body"}, shifts={hostile: lambda x: x})
    writes = Writes()
    writes.on = True
    fit(PL, run, [geometry], max_epochs=1)
    writes.on = False
    inside = {path for path in writes.paths if path.startswith(str(tmp_path))}
    assert {Path(path).name for path in inside} >= {"geometry.csv.partial", "geometry.csv", "geometry.json"}
    assert all(path.startswith(str(run)) or str(run).startswith(path + "/") for path in inside), inside
    assert not [path for path in writes.paths if "evil" in path]
    assert f"accuracy_under_{hostile}" in {record.marker for record in gm.History.load(run / "geometry.csv")}


def test_test_and_validate_measure_nothing_and_write_nothing(tmp_path):
    module, geometry = net(L), callback(PL)
    type(module).test_step = type(module).validation_step
    trainer = L.Trainer(
        callbacks=[geometry], logger=False, default_root_dir=tmp_path, enable_progress_bar=False, accelerator="cpu",
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.validate(module, loader(), verbose=False)
    trainer.test(module, loader(), verbose=False)
    assert len(geometry.monitor.history) == 0
    assert list(tmp_path.glob("geometry*")) == []


def test_fast_dev_run_leaves_no_file(tmp_path):
    geometry = callback(PL, every_n_steps=1)
    fit(PL, tmp_path, [geometry], fast_dev_run=2)
    assert len(geometry.monitor.history) == 0
    assert list(tmp_path.glob("geometry*")) == []


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"overfit_batches": 2}, [2, 4, 6]),
        ({"barebones": True}, [6, 12, 18]),
        ({"limit_val_batches": 0, "num_sanity_val_steps": 0}, [6, 12, 18]),
        ({"max_time": {"hours": 1}, "val_check_interval": 2}, [6, 12, 18]),
    ],
)
def test_options_of_the_trainer(tmp_path, options, steps):
    if "barebones" in options:
        options |= dict.fromkeys(
            ("enable_checkpointing", "logger", "enable_progress_bar", "log_every_n_steps", "enable_model_summary")
        )
    geometry = callback(PL)
    module = net(L)
    if "barebones" in options:
        type(module).validation_step = lambda self, batch, _: None  # logging is an error there
    fit(PL, tmp_path, [geometry], module, **options)
    assert measured_steps(geometry.monitor) == series_in(tmp_path / "geometry.csv") == steps


def test_a_second_fit_in_the_same_directory_keeps_the_file_of_the_first(tmp_path):
    geometry = callback(PL)
    fit(PL, tmp_path, [geometry], max_epochs=2)
    first = geometry.monitor.history.run_id
    fit(PL, tmp_path, [geometry], max_epochs=1)
    assert series_in(tmp_path / first / "geometry.csv") == [6, 12]
    assert series_in(tmp_path / "geometry.csv") == measured_steps(geometry.monitor) == [6]


def test_a_fit_that_goes_on_with_the_same_trainer_goes_on_with_the_series(tmp_path):
    geometry = callback(PL)
    trainer, module = fit(PL, tmp_path, [geometry], max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader(), loader())
    assert series_in(tmp_path / "geometry.csv") == measured_steps(geometry.monitor) == [6, 12]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_another_protocol_on_resume_is_refused_or_starts_a_new_series(tmp_path):
    keeper = saving(tmp_path)
    fit(PL, tmp_path, [callback(PL), keeper], max_epochs=1, enable_checkpointing=True)
    last = tmp_path / "last.ckpt"
    vanished = gm.ProbeSet.from_dataset(dataset(), per_class=12, classes=[0, 1])
    for changed in (
        callback(PL, layers={"penultimate": "head:input"}),
        GeometryCallback(vanished, geometry={"directions": 30}),
        callback(PL, directions=31),
    ):
        with pytest.raises(gm.InputError, match="pass allow_protocol_change=True to start a new series"):
            fit(PL, tmp_path, [changed], max_epochs=2, ckpt=last)
    assert series_in(tmp_path / "geometry.csv") == [6]
    allowed = callback(PL, directions=31, allow_protocol_change=True)
    fit(PL, tmp_path, [allowed], max_epochs=2, ckpt=last)
    assert series_in(tmp_path / "geometry.csv") == measured_steps(allowed.monitor) == [12]
    (refused,) = tmp_path.glob("*/geometry.csv")
    assert series_in(refused) == [6]


def test_a_class_that_has_vanished_is_refused():
    some = [i for i in range(96) if i % 3]
    with pytest.raises(gm.InputError, match="no points of classes 0"):
        gm.ProbeSet.from_dataset(torch.utils.data.Subset(dataset(), some), per_class=12, classes=[0, 1, 2])


def test_a_renamed_layer_is_refused_with_the_nearest_name_before_training(tmp_path):
    module = net(L)
    module.backbone = module.body
    del module.body
    module.forward = lambda x: module.head(module.backbone(x))
    with pytest.raises(gm.InputError, match=r"no layer 'body'.*backbone"):
        fit(PL, tmp_path, [callback(PL, layers={"hidden": "body"})], module)
    assert module.learning_rates == []


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return itertools.islice(itertools.cycle(dataset()), 96)


def test_training_on_a_stream_and_a_probe_set_from_it(tmp_path):
    with pytest.raises(gm.InputError, match=r"list\(itertools.islice\(stream, 5000\)\)"):
        gm.ProbeSet.from_dataset(Stream())
    kept = list(itertools.islice(Stream(), 60))
    geometry = GeometryCallback(
        gm.ProbeSet.from_dataset(kept, per_class=12), geometry={"directions": 10}, on_error="raise"
    )
    trainer = L.Trainer(
        max_epochs=2, callbacks=[geometry], logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(net(L, with_validation=False), DataLoader(Stream(), batch_size=16))
    assert measured_steps(geometry.monitor) == [6, 12]


class Dicts(L.LightningModule):
    """Takes batches as dicts, has no ``forward`` of its own, and steps two optimisers by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def training_step(self, batch: dict[str, Tensor], _: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            logits = self.classified(batch["pixels"], scale=torch.ones(1))
            self.manual_backward(nn.functional.cross_entropy(logits, batch["label"]))
            optimizer.step()

    def classified(self, pixels: Tensor, *, scale: Tensor) -> Tensor:
        return self.head(self.body(pixels * scale).relu())

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.body, self.head)]


def fit_dicts(path: Path, **options: Any) -> tuple[Any, L.Trainer]:
    items = [{"pixels": x, "label": int(y)} for x, y in dataset()]
    geometry = GeometryCallback(gm.ProbeSet.from_dataset(items, per_class=12), geometry={"directions": 10}, **options)
    trainer = L.Trainer(
        max_epochs=2, callbacks=[geometry], logger=False, default_root_dir=path, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Dicts(), DataLoader(items, batch_size=16))
    return geometry, trainer


def test_dict_batches_a_forward_of_its_own_and_two_manual_optimisers(tmp_path):
    def forward(model: Any, inputs: dict[str, Tensor]) -> Tensor:
        return model.classified(inputs["pixels"], scale=torch.ones(1))

    geometry, trainer = fit_dicts(tmp_path, forward=forward, every_n_steps=5, on_error="raise")
    assert trainer.global_step == 24  # two optimiser steps a batch; the axis of all curves counts batches
    assert measured_steps(geometry.monitor) == [5, 10]
    assert all(math.isfinite(record.value) for record in geometry.monitor.history)


def test_a_module_without_forward_is_told_what_to_give(tmp_path):
    with pytest.warns(gm.GeomonitorWarning, match=r"Dicts cannot be called.*Give forward="):
        geometry, trainer = fit_dicts(tmp_path)
    assert trainer.global_step == 24
    assert math.isnan(trainer.callback_metrics[KEY])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("data", "model"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_probe_data_on_another_device(data, model):
    x, y = dataset().tensors
    probe = gm.ProbeSet.from_dataset(TensorDataset(x.to(data), y), per_class=12)
    monitor = gm.GeometryMonitor(probe, geometry={"directions": 10}, on_error="raise")
    assert math.isfinite(monitor.measure(net(L).to(model), step=1)[0].value)


def test_both_namespaces_have_the_same_options():
    theirs = importlib.import_module("geomonitor_integrations.pytorch_lightning")
    for name in ("GeometryCallback", "GeometryEarlyStopping"):
        other, own = getattr(theirs, name), getattr(sys.modules["geomonitor_integrations.lightning"], name)
        assert other.__init__ is own.__init__


class Sparse(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(8, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table((x[:, 0].abs() * 2).long().clamp(max=7)))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_sparse_gradients_are_not_looked_at(tmp_path):
    geometry = callback(PL, markers=["dimension"])
    trainer, _ = fit(PL, tmp_path, [geometry], module=Sparse(), max_epochs=1)
    assert trainer.global_step > 0
    assert not len(geometry.monitor.history.series("", "gradient_norm").steps)
    dense = callback(PL, markers=["dimension"])
    fit(PL, tmp_path, [dense], max_epochs=1)
    assert dense.monitor.history.series("", "gradient_norm").values[0] > 0
