"""A probe set from the Trainer's own data: the validation loader, a datamodule, or a function of the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

import geomonitor as gm
from geomonitor_integrations.lightning import GeometryCallback, GeometryEarlyStopping
from tests.integrations.test_lightning import dataset, net

OPTIONS: dict[str, Any] = {
    "markers": ["dimension", "nc1"], "geometry": {"directions": 10}, "on_error": "raise", "figures_every_n": 0,
}  # fmt: skip


class Data(L.LightningDataModule):
    """Two parts of one dataset, which are there after ``setup`` only."""

    def __init__(self, held_out: range = range(48, 96)) -> None:
        super().__init__()
        self.rows = held_out

    def setup(self, stage: str) -> None:
        self.whole: Dataset = dataset()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Subset(self.whole, range(48)), batch_size=16, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Subset(self.whole, self.rows), batch_size=16)


def fit(
    path: Path, callbacks: list[Any], data: Any = None, epochs: int = 2, *, ckpt: Any = None, **options: Any
) -> Any:
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "log_every_n_steps": 1,
    }  # fmt: skip
    trainer = L.Trainer(callbacks=callbacks, default_root_dir=path, max_epochs=epochs, **defaults | options)
    module = net(L)
    torch.manual_seed(1)
    trainer.fit(module, datamodule=data or Data(), ckpt_path=ckpt)
    return trainer


def series(callback: GeometryCallback) -> list[float]:
    return callback.monitor.history.series("penultimate", "dimension").values.tolist()


def of_trainer(trainer: Any) -> gm.ProbeSet:
    return gm.ProbeSet.from_dataset(trainer.datamodule.val_dataloader(), per_class=12)


@pytest.mark.parametrize("probe", ["val", of_trainer])
def test_it_is_the_probe_set_that_was_given_by_hand(tmp_path, probe):
    data = Data()
    data.setup("fit")
    by_hand = GeometryCallback(gm.ProbeSet.from_dataset(data.val_dataloader(), per_class=12), **OPTIONS)
    late = GeometryCallback(probe, per_class=12, **OPTIONS)
    for name, callback in (("hand", by_hand), ("late", late)):
        fit(tmp_path / name, [GeometryEarlyStopping(), callback])
    assert late.monitor.probe.fingerprint == by_hand.monitor.probe.fingerprint
    assert series(late) == series(by_hand)
    assert len(series(late)) == 2


@pytest.mark.parametrize("probe", ["val", None])
def test_a_coherence_probe_is_passed_on(tmp_path, probe):
    training = gm.ProbeSet.from_dataset(Subset(dataset(), range(48)), per_class=10)
    held = probe or gm.ProbeSet.from_dataset(Subset(dataset(), range(48, 96)), per_class=12)
    ends = []
    for more in ({}, {"coherence_probe": training}):
        callback = GeometryCallback(held, per_class=12, **OPTIONS, **more)
        trainer = fit(tmp_path / str(len(more)), [callback])
        ends.append(list(trainer.lightning_module.state_dict().values()))
    assert all(map(torch.equal, *ends))
    values = callback.monitor.history.series("", "network_coherence").values.tolist()
    assert len(values) == 2
    assert trainer.callback_metrics["geometry/network_coherence"] == pytest.approx(values[-1])
    assert all(-1 / 19 <= value <= 1 for value in values)


def of_first_logit(output: Tensor, label: Tensor) -> Tensor:
    return output[:, 0].mean()


@pytest.mark.parametrize("probe", ["val", None])
def test_a_loss_of_the_coherence_probe_is_passed_on(tmp_path, probe):
    training = gm.ProbeSet.from_dataset(Subset(dataset(), range(48)), per_class=10)
    held = probe or gm.ProbeSet.from_dataset(Subset(dataset(), range(48, 96)), per_class=12)
    found = []
    for loss in (None, of_first_logit):
        callback = GeometryCallback(held, per_class=12, **OPTIONS, coherence_probe=training, coherence_loss=loss)
        fit(tmp_path / str(len(found)), [callback])
        found.append(callback.monitor.history.series("", "network_coherence").values.tolist())
    assert callback.monitor.protocol["coherence loss"] == "of_first_logit"
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def test_cut_and_resumed_equals_unbroken(tmp_path):
    whole, second = (GeometryCallback("val", per_class=12, **OPTIONS) for _ in range(2))
    fit(tmp_path / "whole", [whole], epochs=4)
    cut = fit(tmp_path / "cut", [GeometryCallback("val", per_class=12, **OPTIONS)])
    cut.save_checkpoint(tmp_path / "cut.ckpt")
    fit(tmp_path / "cut", [second], epochs=4, ckpt=tmp_path / "cut.ckpt")
    measured = second.monitor.history.series("penultimate", "dimension").steps.tolist()
    assert measured == [3, 6, 9, 12]
    assert series(second)[:2] == series(whole)[:2]


def test_another_fit_takes_the_points_of_its_own_data(tmp_path):
    callback = GeometryCallback("val", per_class=12, **OPTIONS)
    fit(tmp_path / "a", [callback])
    first = callback.monitor.probe
    fit(tmp_path / "b", [callback], Data(range(50, 96)))
    assert callback.monitor.probe.fingerprint != first.fingerprint
    assert len(series(callback)) == 2


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: Data(range(40, 96)), {}, "probe points are in the training set"),
        (lambda: Data(range(96)), {}, "probe points are in the training set"),
        (Data, {"per_class": 40}, "per_class=40, but some classes have fewer points"),
        (Data, {"limit_val_batches": 0}, 'probe="val" needs a validation loader'),
        (Data, {"probe": lambda trainer: trainer.datamodule}, "must give a ProbeSet; got Data"),
        (Data, {"layers": "heads"}, "the model has no layer 'heads'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_batch(tmp_path, make, options, message):
    own = {name: options[name] for name in ("probe", "layers", "per_class") if name in options}
    rest = {name: value for name, value in options.items() if name not in own}
    batches: list[int] = []
    counter = L.pytorch.callbacks.LambdaCallback(on_train_batch_start=lambda *_: batches.append(1))
    with pytest.raises(gm.InputError, match=message):
        fit(tmp_path, [GeometryCallback(**{"probe": "val", "per_class": 14} | own, **OPTIONS), counter], make(), **rest)
    assert not batches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": "validation"}, "probe is one of 'val'"),
        ({"probe": lambda: None}, r"probe must be a function of \(trainer\)"),
        ({"probe": "val", "per_class": 0}, "per_class is a whole number"),
        ({"probe": "val", "markers": ["dimensions"]}, "no marker or group is called 'dimensions'"),
    ],
)
def test_options_are_checked_when_they_are_given(options, message):
    with pytest.raises(gm.InputError, match=message):
        GeometryCallback(**options)
