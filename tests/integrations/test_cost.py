"""What a measurement may cost in a Trainer run: the budget, the share it reports, and the passive mode."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import geomonitor as gm
from geomonitor.measure.probe_pass import ALONE
from geomonitor_integrations.lightning import GeometryCallback
from tests.integrations.test_no_trace import Net, geometry, points

COST, STEP_SECONDS, STEPS = 100.0, 400.0, 6
"""Seconds of a measurement and of a training step by the clock of the tests: 100 s in 2,400 s of an epoch, 4.2 %."""


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that goes on where the tests say so."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("geomonitor.measure.budget.perf_counter", lambda: clock.now)
    monkeypatch.setattr(
        "geomonitor.monitor.time", SimpleNamespace(perf_counter=lambda: clock.now, time=lambda: clock.now)
    )
    return clock


class Timed(Net):
    def __init__(self, clock: SimpleNamespace, die_in_epoch: int = -1) -> None:
        super().__init__()
        self.die_in_epoch = die_in_epoch

        def advance() -> None:
            clock.now += STEP_SECONDS

        self.advance = advance  # a function: what an attribute holds would be put back after a probe pass

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.die_in_epoch:
            raise RuntimeError("the machine is gone")

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.advance()
        return super().training_step(batch, index)


def timed(clock: SimpleNamespace, **options: Any) -> GeometryCallback:
    def forward(model: nn.Module, inputs: Tensor) -> Tensor:
        # One batch holds the whole probe set; the first measurement also runs two points alone.
        clock.now += COST if len(inputs) > ALONE else 0
        return model(inputs)

    return geometry(forward=forward, **options)


def fit(path: Any, watcher: GeometryCallback, module: L.LightningModule, *more: Any, ckpt: Any = None, **options: Any):
    defaults = {
        "max_epochs": 9, "accelerator": "cpu", "logger": False, "enable_checkpointing": bool(more),
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "limit_val_batches": 0,
    }  # fmt: skip
    trainer = L.Trainer(callbacks=[watcher, *more], default_root_dir=path, **defaults | options)
    validation = DataLoader(points(48), batch_size=16)
    trainer.fit(module, DataLoader(points(), batch_size=16), validation, ckpt_path=ckpt)
    return trainer


def measured_steps(watcher: GeometryCallback) -> list[int]:
    return watcher.monitor.history.series("penultimate", "dimension").steps.tolist()


def test_seconds_and_overhead_are_those_of_the_clock(tmp_path, clock):
    watcher = timed(clock)
    trainer = fit(tmp_path, watcher, Timed(clock), max_epochs=3)
    assert watcher.monitor.history.series("", "seconds").values.tolist() == [COST] * 3
    share = COST / (STEPS * STEP_SECONDS)
    assert watcher.monitor.history.series("", "overhead").values == pytest.approx([share] * 3)
    assert trainer.callback_metrics["geometry_cost/overhead"].item() == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("validated", [0, 3])
def test_over_budget_it_measures_less_often_but_the_last_epoch_and_says_so_once(tmp_path, clock, validated):
    watcher = timed(clock, max_overhead=0.02)
    with pytest.warns(gm.GeomonitorWarning, match=r"every 3-th scheduled measurement is made") as told:
        fit(tmp_path, watcher, Timed(clock), limit_val_batches=validated)
    assert measured_steps(watcher) == [STEPS * epoch for epoch in (1, 4, 7, 9)]
    assert len([w for w in told if "max_overhead" in str(w.message)]) == 1


def test_by_default_an_expensive_measurement_is_made_less_often_and_a_cheap_one_always(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(f"{__name__}.COST", 12.0)  # 5 times 12 s are the minute that is free
    monkeypatch.setattr(f"{__name__}.STEP_SECONDS", 20.0)
    watcher = timed(clock)
    with pytest.warns(gm.GeomonitorWarning, match=r"max_overhead=0\.05 .* every 2-th .*max_overhead=None makes all"):
        fit(tmp_path, watcher, Timed(clock))
    assert measured_steps(watcher) == [STEPS * epoch for epoch in (1, 2, 3, 4, 5, 6, 8, 9)]
    cheap = timed(clock, max_overhead=None)
    fit(tmp_path, cheap, Timed(clock))
    assert measured_steps(cheap) == [STEPS * epoch for epoch in range(1, 10)]


def test_a_run_that_ends_early_is_measured_at_its_end(tmp_path, clock):
    watcher = timed(clock, max_overhead=0.02)
    with pytest.warns(gm.GeomonitorWarning, match="max_overhead"):
        fit(tmp_path, watcher, Timed(clock), max_epochs=-1, max_steps=2 * STEPS)
    assert measured_steps(watcher) == [STEPS, 2 * STEPS]


def test_between_steps_the_budget_counts_steps(tmp_path, clock):
    watcher = timed(clock, max_overhead=0.02, every_n_steps=2)
    with pytest.warns(gm.GeomonitorWarning, match="every 7-th scheduled"):  # 100 s in 800 s
        fit(tmp_path, watcher, Timed(clock), max_epochs=4, accumulate_grad_batches=1)
    assert measured_steps(watcher) == [2, 16, 24]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:measuring takes:geomonitor.GeomonitorWarning")
def test_a_resumed_run_measures_at_the_epochs_of_the_unbroken_one(tmp_path, clock):
    from lightning.pytorch.callbacks import ModelCheckpoint

    first, resumed = (timed(clock, max_overhead=0.02) for _ in range(2))
    keeper = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=1, save_on_train_epoch_end=True)
    with pytest.raises(RuntimeError, match="machine"):
        fit(tmp_path, first, Timed(clock, die_in_epoch=5), keeper)
    fit(tmp_path, resumed, Timed(clock), ckpt=tmp_path / "last.ckpt")
    assert measured_steps(resumed) == [STEPS * epoch for epoch in (1, 4, 7, 9)]


def _passive(**options: Any) -> GeometryCallback:
    return geometry(gm.ValidationProbe(classes=3, per_class=8), **options)


def test_passive_mode_makes_one_forward_pass_of_eight_points_in_a_run(tmp_path):
    class Counting(Net):
        points: ClassVar[list[int]] = []

        def forward(self, x: Tensor) -> Tensor:
            Counting.points.append(len(x))
            return super().forward(x)

    watcher = _passive(markers=("dimension", "nc1", "accuracy"))
    trainer = fit(tmp_path, watcher, Counting(), max_epochs=3, limit_val_batches=3, num_sanity_val_steps=2)
    own = (
        2 + STEPS
    )  # the sanity check and the first epoch; then, at the first batch of a validation, the layer is found
    assert len(Counting.points) == 2 + 3 * (STEPS + 3) + 1
    assert Counting.points[own] == min(8, Counting.points[own + 1])
    assert measured_steps(watcher) == [6, 12, 18]
    assert math.isfinite(trainer.callback_metrics["geometry/penultimate/dimension"])
    x, labels = points(48).tensors
    module = trainer.lightning_module.eval()
    by_hand = gm.GeometryMonitor(watcher.monitor.probe, markers=["accuracy"], panel=gm.Panel(["accuracy"]))
    validation = by_hand.validation_pass(module)
    with validation.batch((x, labels)), torch.no_grad():
        module(x)
    by_hand.measure(module, step=1, validation=validation)
    expected = by_hand.history.series("penultimate", "accuracy").values[-1]
    assert watcher.monitor.history.series("penultimate", "accuracy").values[-1] == expected


def test_passive_mode_every_other_validation(tmp_path):
    watcher = _passive()
    fit(tmp_path, watcher, Net(), max_epochs=4, limit_val_batches=1.0, check_val_every_n_epoch=2)
    assert measured_steps(watcher) == [12, 24]


def test_an_error_in_validation_takes_the_hooks_off(tmp_path):
    class Failing(Net):
        def validation_step(self, batch: list[Tensor], index: int) -> None:
            super().validation_step(batch, index)
            if index == 1:
                raise RuntimeError("in validation")

    module = Failing()
    with pytest.raises(RuntimeError, match="in validation"):
        fit(tmp_path, _passive(), module, limit_val_batches=3, num_sanity_val_steps=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_what_passive_mode_cannot_do_is_refused(tmp_path):
    with pytest.raises(gm.InputError, match="needs a validation loop"):
        fit(tmp_path, _passive(), Net(), limit_val_batches=0)
    trainer = L.Trainer(
        callbacks=[_passive()], max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, default_root_dir=tmp_path,
    )  # fmt: skip
    shuffled = DataLoader(points(48), batch_size=16, shuffle=True)
    with pytest.warns(match="shuffling"), pytest.raises(gm.InputError, match="validation loader shuffles"):
        trainer.fit(Net(), DataLoader(points(), batch_size=16), shuffled)
