"""Fibers in real Trainer runs: the picture at an alarm, the weights before, what goes wrong, and no trace."""

from __future__ import annotations

import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor.explain import Fibers, FlowPrior, at_alarm
from geomonitor_integrations.lightning import GeometryCallback, GeometryCheckpoint
from tests.fiber_targets import prior, squares

ALARM_FROM = 12


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(36, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)).relu())

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", self.training_step(batch, 0), batch_size=16)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def declines(series: gm.Series) -> gm.Verdict:
    low = bool(len(series.steps) and series.steps[-1] >= ALARM_FROM)
    return gm.Verdict(low, series.layer, series.marker, 1.0, 2.0, 0.1, since_step=ALARM_FROM, checks=int(low))


def fit(tmp_path, fibers, *, more=(), validate=True, logger=None):
    """Four epochs of four steps; the alarm is raised after the third."""
    data = TensorDataset(*squares())
    callback = GeometryCallback(
        gm.ProbeSet.from_dataset(data, per_class=20), markers=["participation_ratio"], figures_every_n=0,
        panel=gm.Panel(("participation_ratio",), declines, 1), on_error="raise", layers={"mine": "head:input"},
        confirm=False, fibers=fibers,
    )  # fmt: skip
    torch.manual_seed(0)
    module = Net()
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", logger=logger or False, callbacks=[callback, *more], log_every_n_steps=1,
        default_root_dir=tmp_path, enable_checkpointing=bool(more), enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(1)
    loader = DataLoader(data, batch_size=13, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeometryDeclineWarning)
        warnings.filterwarnings("ignore", ".*(does not have many workers|val_dataloader|shuffling).*")
        trainer.fit(module, loader, DataLoader(data, batch_size=25) if validate else None)
    return callback, module


def few(**options) -> Fibers:
    return Fibers(prior(), **{"members": 2, "steps": 4} | options)


@pytest.fixture
def drawn(monkeypatch):
    """The weights before and after of each comparison, as features of one image."""
    found = []
    compare = at_alarm.compare_fibers

    def watched(before, after, *args, **options):
        image = squares()[0][:1]
        found.append((before(image).detach(), after(image).detach()))
        return compare(before, after, *args, **options)

    monkeypatch.setattr(at_alarm, "compare_fibers", watched)
    return found


@pytest.mark.parametrize("validate", [True, False])
def test_the_picture_goes_to_the_logger_and_beside_the_history_and_training_is_as_without(tmp_path, drawn, validate):
    logger = TensorBoardLogger(tmp_path)
    callback, module = fit(tmp_path, few(), validate=validate, logger=logger)
    _, plain = fit(tmp_path / "plain", None, validate=validate)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))
    assert callback.monitor.history.path.with_name("fibers.png").read_bytes().startswith(b"\x89PNG")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert "geometry/mine/fibers" in events.Tags()["images"]
    assert len(drawn) == 1  # once for one alarm
    assert not torch.equal(*drawn[0])


def test_the_file_of_the_last_healthy_checkpoint_is_taken_and_no_copy_is_kept(tmp_path, drawn):
    keeper = GeometryCheckpoint(dirpath=tmp_path / "kept", save_top_k=1, every_n_epochs=1)
    fibers = few()
    fit(tmp_path, fibers, more=(keeper,))
    assert fibers.kept is None
    weights = torch.load(keeper.last_healthy.path, weights_only=True)["state_dict"]
    net = Net()
    net.load_state_dict(weights)
    want = net.body(squares()[0][:1].flatten(1)).relu()
    torch.testing.assert_close(drawn[0][0], want)


@pytest.mark.parametrize(
    ("fibers", "words"),
    [
        (Fibers(FlowPrior(lambda x, t: x, (1, 4, 4)), members=2), "prior's shape"),
        (few(to_model=lambda x: x.nan_to_num(1) / 0), "not finite"),
    ],
)
def test_a_failure_is_a_warning_and_the_run_goes_on(tmp_path, fibers, words):
    with pytest.warns(gm.GeomonitorWarning, match=words):
        callback, _ = fit(tmp_path, fibers)
    assert callback.monitor.history.measurements == 4
    assert not callback.monitor.history.path.with_name("fibers.png").exists()


def test_what_is_no_fibers_is_refused(tmp_path):
    with pytest.raises(gm.InputError, match="fibers"):
        fit(tmp_path, prior())
