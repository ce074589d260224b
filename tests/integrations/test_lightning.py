"""The callbacks in real Trainer runs of both Lightning namespaces."""

from __future__ import annotations

import csv
import importlib.metadata
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor.history.records import Series
from tests.options import grouped

MEASURED = ("dimension", "participation_ratio", "nc1")


@pytest.fixture(params=["lightning", "pytorch_lightning"])
def pl(request) -> SimpleNamespace:
    """One namespace: its Trainer, loggers and callbacks, and our callbacks for it."""
    base = "lightning.pytorch" if request.param == "lightning" else "pytorch_lightning"
    root, callbacks, loggers = (importlib.import_module(base + part) for part in ("", ".callbacks", ".loggers"))
    ours = importlib.import_module(f"geomonitor_integrations.{request.param}")
    return SimpleNamespace(
        name=request.param, L=root, callbacks=callbacks, loggers=loggers,
        GeometryCallback=ours.GeometryCallback, GeometryEarlyStopping=ours.GeometryEarlyStopping,
    )  # fmt: skip


def dataset(points: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(points) % 3
    centers = torch.randn(3, 5, generator=generator)
    return TensorDataset(centers[labels] + torch.randn(points, 5, generator=generator), labels)


def loader(shuffle: bool = False) -> DataLoader:
    return DataLoader(dataset(), batch_size=16, shuffle=shuffle)


def net(L: Any, *, with_validation: bool = True, plateau: bool = False) -> Any:
    class Net(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2))
            self.head = nn.Linear(24, 3)
            self.learning_rates: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            if not plateau:
                return optimizer
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0, threshold=1e9)
            monitored = {"scheduler": scheduler, "monitor": "geometry/penultimate/dimension"}
            return {"optimizer": optimizer, "lr_scheduler": monitored}

        def on_train_epoch_start(self) -> None:
            self.learning_rates.append(self.optimizers().param_groups[0]["lr"])

    if with_validation:
        Net.validation_step = lambda self, batch, _: self.log("val_loss", self.training_step(batch, _), batch_size=16)
    torch.manual_seed(0)
    return Net()


def callback(pl: SimpleNamespace, **options: Any) -> Any:
    probe = gm.ProbeSet.from_dataset(dataset(), per_class=12)
    return pl.GeometryCallback(
        probe, **grouped(**{"directions": 30, "markers": MEASURED, "on_error": "raise"} | options)
    )


def fit(pl: SimpleNamespace, path: Path, callbacks: list[Any], module: Any = None, *, ckpt: Any = None, **options: Any):
    defaults = {
        "max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
    }  # fmt: skip
    trainer = pl.L.Trainer(callbacks=callbacks, default_root_dir=path, **defaults | options)
    module = module or net(pl.L)
    torch.manual_seed(1)
    validation = loader() if "validation_step" in vars(type(module)) else None
    trainer.fit(module, loader(shuffle=True), validation, ckpt_path=ckpt)
    return trainer, module


def declines_from(step: int) -> Any:
    """A detector that finds every series low from a step on, whatever its values."""

    def detector(series: Series) -> gm.Verdict:
        low = bool(len(series.steps) and series.steps[-1] >= step)
        return gm.Verdict(low, series.layer, series.marker, 1.0, 2.0, 0.1, since_step=step, checks=1)

    return detector


def measured_steps(monitor: gm.GeometryMonitor) -> list[int]:
    return monitor.history.series("penultimate", "dimension").steps.tolist()


@pytest.mark.parametrize("with_validation", [True, False])
def test_every_epoch_is_measured_once_and_logged_on_the_optimisers_axis(pl, tmp_path, with_validation):
    geometry = callback(pl)
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer, _ = fit(pl, tmp_path, [geometry], net(pl.L, with_validation=with_validation), logger=logger)
    assert measured_steps(geometry.monitor) == [6, 12, 18]
    series = geometry.monitor.history.series("penultimate", "dimension")
    assert series.epochs.tolist() == [0, 1, 2]
    keys = {f"geometry/penultimate/{m}" for m in (*MEASURED, "alarm")} | {"geometry_cost/seconds"}
    assert keys <= set(trainer.callback_metrics)
    logger.save()
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("geometry/penultimate/dimension")]
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert [int(row["step"]) for row in rows] == [5, 11, 17]  # Lightning logs the step just done, counted from 0
    logged = [float(row["geometry/penultimate/dimension"]) for row in rows]
    assert logged == pytest.approx(series.values.tolist(), rel=1e-6)  # loggers get float32
    assert len(gm.History.load(Path(logger.log_dir, "geometry.csv"))) == len(geometry.monitor.history)


def test_pretrained_weights_are_measured_before_the_first_step(pl, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    probe = gm.ProbeSet.from_dataset(dataset(), per_class=10)
    geometry = pl.GeometryCallback(probe, panel=gm.Panel(pretrained=True), geometry={"directions": 10})
    fit(pl, tmp_path, [geometry], logger=logger)
    series = geometry.monitor.history.series("penultimate", "dimension")
    assert series.steps.tolist() == [0, 6, 12, 18]
    assert math.isnan(series.epochs[0])
    assert series.epochs[1:].tolist() == [0, 1, 2]
    logger.save()
    with Path(logger.log_dir, "metrics.csv").open() as file:
        logged = [row["step"] for row in csv.DictReader(file) if row["geometry/penultimate/dimension"]]
    assert logged[0] == "0"
    assert len(logged) == 4


def test_tensorboard_gets_scalars_and_the_text_of_the_alarm(pl, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = pl.loggers.TensorBoardLogger(tmp_path)
    with pytest.warns(gm.GeometryDeclineWarning):
        fit(pl, tmp_path, [callback(pl, detector=declines_from(12))], logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [e.value for e in events.Scalars("geometry/penultimate/alarm")] == [0, 1, 1]
    texts = [event.tensor_proto.string_val[0] for event in events.Tensors("geometry/status/text_summary")]
    assert [b"transfer worse to new classes" in text for text in texts] == [False, True, True]


def test_early_stopping_checkpoints_and_plateau_see_the_values(pl, tmp_path):
    stopper = pl.callbacks.EarlyStopping("geometry/penultimate/dimension", mode="max", patience=1, min_delta=1e9)
    keeper = pl.callbacks.ModelCheckpoint(
        tmp_path, monitor="geometry/penultimate/dimension", mode="max", filename="best", auto_insert_metric_name=False
    )
    geometry = callback(pl)
    trainer, module = fit(
        pl, tmp_path, [stopper, keeper, geometry], net(pl.L, plateau=True), max_epochs=5, enable_checkpointing=True
    )
    assert trainer.current_epoch == 2  # the first value is the best, the second does not improve by 1e9
    seen = geometry.monitor.history.series("penultimate", "dimension").values
    assert keeper.best_model_score.item() == pytest.approx(seen.max(), rel=1e-6)
    assert module.learning_rates == [0.1, 0.1]
    _, module = fit(pl, tmp_path, [callback(pl)], net(pl.L, plateau=True), max_epochs=4)
    assert module.learning_rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"every_n_epochs": 2}, [6, 18]),
        ({"every_n_steps": 5}, [5, 10, 15, 20]),
    ],
)
def test_cadence(pl, tmp_path, options, steps):
    geometry = callback(pl, **options)
    fit(pl, tmp_path, [geometry], max_epochs=4)
    assert measured_steps(geometry.monitor) == steps


def test_steps_reach_the_logger_at_their_own_step(pl, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer, _ = fit(pl, tmp_path, [callback(pl, every_n_steps=4)], logger=logger, log_every_n_steps=5)
    logger.save()
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("geometry/penultimate/dimension")]
    assert [int(row["step"]) for row in rows] == [3, 7, 11, 15]  # as self.log counts: the step just done, from 0
    assert "geometry/penultimate/dimension" in trainer.callback_metrics


def test_gradient_accumulation_measures_a_step_once(pl, tmp_path):
    geometry = callback(pl, every_n_steps=2)
    fit(pl, tmp_path, [geometry], accumulate_grad_batches=3)
    assert measured_steps(geometry.monitor) == [2, 4, 6]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"val_check_interval": 0.5}, [6, 12, 18]),
        ({"check_val_every_n_epoch": 2}, [6, 12, 18]),
        ({"limit_val_batches": 0}, [6, 12, 18]),
        ({"fast_dev_run": True}, []),
        ({"limit_train_batches": 2}, [2, 4, 6]),
    ],
)
def test_trainer_options(pl, tmp_path, options, steps):
    geometry = callback(pl)
    fit(pl, tmp_path, [geometry], **options)
    assert measured_steps(geometry.monitor) == steps


def test_the_sanity_check_is_no_measurement(pl, tmp_path):
    geometry = callback(pl)
    fit(pl, tmp_path, [geometry], max_epochs=1, num_sanity_val_steps=2)
    assert measured_steps(geometry.monitor) == [6]


def test_validate_outside_fit_measures_nothing(pl, tmp_path):
    geometry = callback(pl)
    trainer, module = fit(pl, tmp_path, [geometry], max_epochs=1)
    trainer.validate(module, loader(), verbose=False)
    assert measured_steps(geometry.monitor) == [6]


@pytest.mark.parametrize("options", [{}, {"every_n_steps": 2}])
def test_weights_are_bit_identical_with_and_without(pl, tmp_path, options):
    _, without = fit(pl, tmp_path, [])
    _, monitored = fit(pl, tmp_path, [callback(pl, **options)])
    for name, tensor in without.state_dict().items():
        assert torch.equal(tensor, monitored.state_dict()[name]), name


@pytest.mark.parametrize(("cadence", "stop_step"), [({}, 12), ({"every_n_steps": 4}, 12), ({"every_n_steps": 5}, 15)])
@pytest.mark.parametrize("stopper_first", [True, False])
def test_early_stopping_on_a_decline_says_why(pl, tmp_path, capsys, cadence, stop_step, stopper_first):
    geometry, stopper = callback(pl, detector=declines_from(11), **cadence), pl.GeometryEarlyStopping()
    order = [stopper, geometry] if stopper_first else [geometry, stopper]
    with pytest.warns(gm.GeometryDeclineWarning):
        trainer, _ = fit(pl, tmp_path, order, max_epochs=8)
    # A stopper that comes first sees a measurement within an epoch one batch later, one at its end in time.
    late = int(stopper_first and stop_step % 6 != 0)
    assert trainer.global_step == stop_step + late
    assert stopper.stopped_epoch == (stop_step + late - 1) // 6
    assert stopper.stopping_reason_message == f"geometry early stopping: {geometry.monitor.status.headline}"
    assert capsys.readouterr().err.count(stopper.stopping_reason_message) == 1


def test_a_stop_that_could_never_come_is_refused(pl, tmp_path):
    for options in ({"layers": {"hidden": "body"}}, {"detector": None}):
        with pytest.raises(gm.InputError, match="nothing could ever stop this run"):
            fit(pl, tmp_path, [callback(pl, **options), pl.GeometryEarlyStopping()])


def test_a_layer_that_does_not_exist_is_an_error_before_training(pl, tmp_path):
    module = net(pl.L)
    with pytest.raises(gm.InputError, match="bdy"):
        fit(pl, tmp_path, [callback(pl, layers="bdy")], module)
    assert module.learning_rates == []


def test_keys_are_there_at_epochs_without_a_measurement(pl, tmp_path):
    stopper = pl.callbacks.EarlyStopping("geometry/penultimate/dimension", mode="max", patience=9)
    geometry = callback(pl, every_n_epochs=2)
    logger = pl.loggers.CSVLogger(tmp_path)
    fit(pl, tmp_path, [geometry, stopper], net(pl.L, plateau=True), max_epochs=4, logger=logger)
    logger.save()
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("geometry/penultimate/dimension")]
    assert [int(row["epoch"]) for row in rows] == [0, 2]  # nothing is logged twice


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_keys_are_there_after_a_resume_before_the_next_measurement(pl, tmp_path):
    keeper = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    module = net(pl.L, plateau=True)
    fit(pl, tmp_path, [callback(pl, every_n_epochs=4), keeper], module, max_epochs=2, enable_checkpointing=True)
    resumed = callback(pl, every_n_epochs=4)
    module = net(pl.L, plateau=True)
    trainer, _ = fit(pl, tmp_path, [resumed], module, max_epochs=3, ckpt=tmp_path / "last.ckpt")
    measured = resumed.monitor.history.series("penultimate", "dimension").values
    assert len(measured) == 1
    assert trainer.callback_metrics["geometry/penultimate/dimension"].item() == pytest.approx(measured[0], rel=1e-6)


def test_a_detector_that_fails_does_not_end_the_run(pl, tmp_path):
    def broken(series: Series) -> gm.Verdict:
        raise ZeroDivisionError

    with pytest.warns(gm.GeomonitorWarning, match="the detector failed"):
        trainer, _ = fit(pl, tmp_path, [callback(pl, detector=broken, on_error="warn")])
    assert trainer.global_step == 18


def test_no_decline_no_stop(pl, tmp_path):
    trainer, _ = fit(pl, tmp_path, [callback(pl, detector=declines_from(999)), pl.GeometryEarlyStopping()])
    assert trainer.global_step == 18


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_has_the_history_and_the_stop_of_the_unbroken_one(pl, tmp_path):
    def parts() -> list[Any]:
        return [callback(pl, detector=declines_from(17)), pl.GeometryEarlyStopping()]

    def timeless(geometry: Any) -> list[str]:
        return [repr(r._replace(time=0.0)) for r in geometry.monitor.history if r.layer]

    unbroken, first, resumed = parts(), parts(), parts()
    with pytest.warns(gm.GeometryDeclineWarning):
        whole, _ = fit(pl, tmp_path / "a", unbroken, max_epochs=5, limit_val_batches=0)
    options = {"limit_val_batches": 0, "enable_checkpointing": True}
    keeper = pl.callbacks.ModelCheckpoint(tmp_path / "b", save_last=True, every_n_epochs=1)
    trainer, _ = fit(pl, tmp_path / "b", [*first, keeper], max_epochs=2, **options)
    assert trainer.global_step == 12
    with pytest.warns(gm.GeometryDeclineWarning):
        again, _ = fit(
            pl, tmp_path / "b", resumed, max_epochs=5, ckpt=tmp_path / "b" / "last.ckpt", limit_val_batches=0
        )
    assert again.global_step == whole.global_step == 18
    assert [r.split(", value")[0] for r in timeless(resumed[0])] == [
        r.split(", value")[0] for r in timeless(unbroken[0])
    ]
    assert (
        timeless(resumed[0])[: 2 * 5] == timeless(unbroken[0])[: 2 * 5]
    )  # shuffling after a resume is Lightning's affair
    assert len(gm.History.load(tmp_path / "b" / "geometry.csv")) == len(resumed[0].monitor.history)
    torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_without_our_state_loads(pl, tmp_path):
    fit(pl, tmp_path, [pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)], max_epochs=1, enable_checkpointing=True)
    geometry = callback(pl)
    fit(pl, tmp_path, [geometry], max_epochs=2, ckpt=tmp_path / "last.ckpt")
    assert measured_steps(geometry.monitor) == [12]


def test_a_second_fit_of_the_same_callback_starts_anew(pl, tmp_path):
    geometry = callback(pl)
    for run in ("a", "b"):
        fit(pl, tmp_path / run, [geometry], max_epochs=1)
        assert len(gm.History.load(tmp_path / run / "geometry.csv")) == len(geometry.monitor.history) == 13


def test_an_error_in_a_measurement_does_not_end_the_run(pl, tmp_path):
    def forward(model: Any, inputs: Any) -> Any:
        raise RuntimeError("out of cheese")

    geometry = callback(pl, forward=forward, on_error="warn")
    with pytest.warns(gm.GeomonitorWarning, match="out of cheese") as told:
        trainer, _ = fit(pl, tmp_path, [geometry, pl.GeometryEarlyStopping()])
    assert trainer.global_step == 18
    assert len([w for w in told if "out of cheese" in str(w.message)]) == 1
    assert math.isnan(trainer.callback_metrics["geometry/penultimate/dimension"])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(pl, tmp_path, precision):
    geometry = callback(pl)
    fit(pl, tmp_path, [geometry], precision=precision, max_epochs=1)
    assert all(math.isfinite(r.value) for r in geometry.monitor.history)


def test_a_trainer_of_the_other_namespace_is_refused(pl, tmp_path):
    other = "pytorch_lightning" if pl.name == "lightning" else "lightning"
    theirs = importlib.import_module(f"geomonitor_integrations.{other}")
    stranger = theirs.GeometryCallback(gm.ProbeSet.from_dataset(dataset(), per_class=12))
    error, refusal = gm.InputError, f"import GeometryCallback from geomonitor_integrations.{pl.name}"
    if [int(part) for part in importlib.metadata.version(pl.name).split(".")[:2]] < [2, 6]:
        error, refusal = ValueError, "Expected a parent"  # it refuses the callback itself, before ours is asked
    with pytest.raises(error, match=refusal):
        fit(pl, tmp_path, [stranger])


def test_early_stopping_without_the_callback_is_refused(pl, tmp_path):
    with pytest.raises(gm.InputError, match="add one to callbacks"):
        fit(pl, tmp_path, [pl.GeometryEarlyStopping()])


def test_callbacks_pickle(pl):
    for made in (callback(pl), pl.GeometryEarlyStopping()):
        assert type(pickle.loads(pickle.dumps(made))) is type(made)


def test_every_hook_is_one_that_lightning_calls(pl):
    from geomonitor_integrations._lightning_hooks import GeometryHooks
    from geomonitor_integrations._lightning_stop import StopOnDecline

    known = set(dir(pl.callbacks.Callback)) | set(dir(pl.callbacks.EarlyStopping))
    ours = {
        name
        for cls in (GeometryHooks, StopOnDecline)
        for name in vars(cls)
        if name.startswith("on_") or name == "setup"
    }
    assert ours <= known


@pytest.mark.parametrize(
    "option",
    [
        {"every_n_epochs": 0}, {"every_n_steps": 0}, {"markers": "dimensoin"}, {"dichotomies": "ovr"}, {"mode": "pair"},
        {"pool": "avg"}, {"pairs": 3}, {"directions": 1}, {"batch_size": 0}, {"watch": ()}, {"detector": "page"},
    ],
)  # fmt: skip
def test_wrong_options_are_named(pl, option):
    with pytest.raises(gm.InputError):
        callback(pl, **option)
