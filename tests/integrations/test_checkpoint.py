"""GeometryCheckpoint in real Trainer runs of both Lightning namespaces."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor.history.runs import load_run
from geomonitor.report import render_report
from geomonitor_integrations._lightning_checks import require_whole_checkpoints


@pytest.fixture(params=["lightning", "pytorch_lightning"])
def pl(request) -> SimpleNamespace:
    base = "lightning.pytorch" if request.param == "lightning" else "pytorch_lightning"
    ours = importlib.import_module(f"geomonitor_integrations.{request.param}")
    return SimpleNamespace(
        L=importlib.import_module(base), callbacks=importlib.import_module(f"{base}.callbacks"), ours=ours
    )


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    return TensorDataset(torch.randn(96, 5, generator=generator), labels)


def net(L: Any, width: int = 24) -> Any:
    class Net(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(5, width), nn.Linear(width, 3)
            self.register_buffer("steps", torch.tensor(0.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).relu())

        def training_step(self, batch: Any, _: int) -> Tensor:
            self.steps.fill_(self.global_step + 1)
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val_loss", self.steps, batch_size=16)  # the first one stays the best

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Net()


def low_from(step: int) -> Any:
    """Pending at the first measurement from a step on, declined from the second one on."""

    def detector(series: gm.Series) -> gm.Verdict:
        low = [int(s) for s in series.steps if s >= step]
        since = low[0] if low else None
        return gm.Verdict(len(low) > 1, series.layer, series.marker, 1.0, 2.0, 0.1, since, None, len(low), 2)

    return detector


def callback(pl: SimpleNamespace, step: int, **options: Any) -> Any:
    panel = gm.Panel(("participation_ratio",), low_from(step))
    probe = gm.ProbeSet.from_dataset(dataset(), per_class=8)
    return pl.ours.GeometryCallback(
        probe, markers=["participation_ratio"], panel=panel, on_error="raise", figures_every_n=0, **options
    )


def fit(pl: SimpleNamespace, path: Path, callbacks: list[Any], *, model: Any = None, ckpt: Any = None, **options: Any):
    defaults = {
        "max_epochs": 8, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "log_every_n_steps": 1, "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = pl.L.Trainer(callbacks=callbacks, default_root_dir=path, **defaults | options)
    model = model or net(pl.L)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, DataLoader(dataset(), batch_size=16), DataLoader(dataset(), batch_size=16), ckpt_path=ckpt)
    told = [str(w.message) for w in caught if issubclass(w.category, gm.GeomonitorWarning)]
    return trainer, model, told


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.glob("*.ckpt"))


def test_kept_marked_named_and_restored(pl, tmp_path, capsys):
    geometry = callback(pl, 24)  # six batches an epoch: the decline begins in epoch 3
    keeper = pl.ours.GeometryCheckpoint(tmp_path / "ckpt", restore=True)
    _, model, told = fit(pl, tmp_path, [keeper, geometry])
    kept = tmp_path / "ckpt" / "healthy-epoch=2-step=18.ckpt"
    assert names(tmp_path / "ckpt") == ["epoch=7-step=48.ckpt", kept.name]
    assert model.steps == 18  # restored
    assert f"the weights of {kept} (epoch 2, step 18) were restored" in capsys.readouterr().err
    assert keeper.last_healthy == geometry.monitor.last_healthy
    assert geometry.monitor.last_healthy.path == str(kept)
    assert any(f"Last healthy checkpoint: {kept} (epoch 2, step 18)." in text for text in told)
    assert load_run(tmp_path).last_healthy == geometry.monitor.last_healthy
    assert torch.load(kept, weights_only=True)["global_step"] == 18


def test_the_report_names_it(tmp_path):
    pytest.importorskip("plotly")
    from tests.runs_on_disk import write_run

    path = write_run(tmp_path / "run", faulty=True)
    history = gm.History.load(load_run(path).path)
    side = load_run(path)
    saved = gm.History(history)
    saved.open(tmp_path / "named" / "geometry.csv", side.protocol, side.panel)
    saved.note("last_healthy", {"path": "checkpoints/healthy-step=1.ckpt", "step": 1, "epoch": 0})
    page = render_report(load_run(tmp_path / "named"))
    assert "Last healthy checkpoint: checkpoints/healthy-step=1.ckpt (epoch 0, step 1)." in page


@pytest.mark.parametrize("top_k", [1, 2, 0])
def test_with_a_monitor_whose_best_is_old_the_newest_healthy_state_is_kept(pl, tmp_path, top_k):
    keeper = pl.ours.GeometryCheckpoint(tmp_path / "ckpt", monitor="val_loss", save_top_k=top_k)
    counts = []

    class Count(pl.callbacks.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            counts.append(len(names(tmp_path / "ckpt")) if (tmp_path / "ckpt").exists() else 0)

    _, model, _ = fit(pl, tmp_path, [keeper, callback(pl, 24), Count()])
    own = ["epoch=0-step=6.ckpt", "epoch=1-step=12.ckpt"][:top_k]
    assert names(tmp_path / "ckpt") == [*own, "healthy-epoch=2-step=18.ckpt"]
    assert max(counts) <= top_k + 1
    assert model.steps == 48


@pytest.mark.parametrize(("every", "kept"), [(4, 16), (5, 15), (6, 18), (1, 18)])
def test_every_n_train_steps(pl, tmp_path, every, kept):
    keeper = pl.ours.GeometryCheckpoint(tmp_path / "ckpt", every_n_train_steps=every)
    fit(pl, tmp_path, [callback(pl, 24), keeper])
    found = names(tmp_path / "ckpt")
    assert len(found) == 2
    assert f"step={kept}.ckpt" in found[1]


def test_measured_and_saved_within_an_epoch_and_stopped_there(pl, tmp_path):
    keeper = pl.ours.GeometryCheckpoint(tmp_path / "ckpt", every_n_train_steps=2, restore=True)
    stop = pl.ours.GeometryEarlyStopping()
    trainer, model, _ = fit(pl, tmp_path, [keeper, stop, callback(pl, 10, every_n_steps=2)])
    assert trainer.global_step == 12
    assert model.steps == 8


def test_resumed_twice(pl, tmp_path):
    for last in (2, 5, 8):
        keeper = pl.ours.GeometryCheckpoint(tmp_path / "ckpt", save_last=True, restore=True)
        before = tmp_path / "ckpt" / "last.ckpt"
        ckpt = before if before.exists() else None
        geometry = callback(pl, 24)
        _, model, _ = fit(pl, tmp_path, [geometry, keeper], max_epochs=last, ckpt=ckpt)
        assert len(names(tmp_path / "ckpt")) == 3  # the newest one, last.ckpt, and the one that is kept
    assert [name for name in names(tmp_path / "ckpt") if "healthy" in name] == ["healthy-epoch=2-step=18.ckpt"]
    assert model.steps == 18
    assert geometry.monitor.last_healthy.step == 18


def test_a_checkpoint_of_another_model_leaves_the_weights_and_one_sentence(pl, tmp_path):
    class Swap(pl.callbacks.Callback):
        def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == 6:
                for kept in (tmp_path / "ckpt").glob("healthy*.ckpt"):
                    torch.save(net(pl.L, 7).state_dict(), kept)

    keeper = pl.ours.GeometryCheckpoint(tmp_path / "ckpt", restore=True)
    _, model, told = fit(pl, tmp_path, [callback(pl, 24), keeper, Swap()])
    assert model.steps == 48
    assert sum("does not fit the model" in text for text in told) == 1


def test_what_cannot_work_is_refused(pl, tmp_path):
    with pytest.raises(gm.InputError, match="needs a GeometryCallback"):
        fit(pl, tmp_path, [pl.ours.GeometryCheckpoint(tmp_path)])
    with pytest.raises(gm.InputError, match="restore is True or False"):
        pl.ours.GeometryCheckpoint(tmp_path, restore="yes")
    unjudged = pl.ours.GeometryCallback(gm.ProbeSet.from_dataset(dataset(), per_class=8), panel=None)
    with pytest.raises(gm.InputError, match="panel=None"):
        fit(pl, tmp_path, [pl.ours.GeometryCheckpoint(tmp_path), unjudged])


@pytest.mark.parametrize("restore", [True, False])
def test_shards_are_refused_before_training_if_they_would_be_restored(pl, tmp_path, restore):
    strategy = pl.L.strategies.SingleDeviceStrategy("cpu")
    strategy._state_dict_type = "sharded"  # as FSDPStrategy has it
    checkpoint = pl.ours.GeometryCheckpoint(tmp_path, restore=restore)
    callbacks = [checkpoint, pl.ours.GeometryCallback(gm.ProbeSet.from_dataset(dataset(), per_class=8))]
    if restore:
        with pytest.raises(gm.InputError, match=r'state_dict_type="full".*, or restore=False'):
            fit(pl, tmp_path, callbacks, strategy=strategy)
        assert not list(tmp_path.rglob("*.ckpt"))
    else:
        fit(pl, tmp_path, callbacks, strategy=strategy)


def test_the_strategies_of_lightning_that_save_shards_are_refused():
    from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

    for strategy in (ModelParallelStrategy(), FSDPStrategy(state_dict_type="sharded")):
        with pytest.raises(gm.InputError, match=type(strategy).__name__):
            require_whole_checkpoints(SimpleNamespace(strategy=strategy))
    for fine in (DDPStrategy(), FSDPStrategy(), ModelParallelStrategy(save_distributed_checkpoint=False)):
        require_whole_checkpoints(SimpleNamespace(strategy=fine))


@pytest.mark.parametrize(("monitor", "mode"), [("dimension", "max"), ("alarm", "min")])
def test_the_trap_a_plain_checkpoint_by_dimension_or_alarm_keeps_epoch_0(tmp_path, monitor, mode):
    """Why GeometryCheckpoint exists: the dimension is highest, and the alarm lowest, before anything is learned."""
    from tests.integrations.trap import kept_by_a_plain_checkpoint

    assert "epoch=0" in kept_by_a_plain_checkpoint(tmp_path, monitor, mode)
