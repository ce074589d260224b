"""What the loggers of real Trainer runs hold afterwards: TensorBoard, W&B offline, MLflow's file store, CSV."""

from __future__ import annotations

import io
import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
import geomonitor.measure.series
from geomonitor.history.records import Series
from geomonitor.history.runs import load_run
from geomonitor_integrations._logger_kinds import layout_of
from geomonitor_integrations._loggers import LoggerOutput
from geomonitor_integrations.lightning import GeometryCallback
from tests.loggers_on_disk import records_in, wandb_logged, wandb_records
from tests.options import grouped

LAYER = "head:in"  # a colon is no letter of TensorBoard's tags, nor of MLflow's
FIGURES = ("class_centers", "class_clouds", "class_dimensions", "spectrum")


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    centers = torch.randn(3, 5, generator=generator)
    return TensorDataset(centers[labels] + torch.randn(96, 5, generator=generator), labels)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def declines_from(step: int) -> Any:
    def detector(series: Series) -> gm.Verdict:
        low = bool(len(series.steps) and series.steps[-1] >= step)
        return gm.Verdict(low, series.layer, series.marker, 1.0, 2.0, 0.1, since_step=step, checks=1)

    return detector


def fit(path: Path, logger: Any, *, alarm_from: int = 10**9, ckpt: Any = None, epochs: int = 3, **options: Any) -> Any:
    """Three epochs of six steps; returns the callback and the trained module."""
    probe = gm.ProbeSet.from_dataset(dataset(), per_class=12)
    defaults = {"directions": 30, "layers": {LAYER: "head:input"}, "on_error": "raise"}
    geometry = GeometryCallback(probe, **grouped(detector=declines_from(alarm_from), **defaults | options))
    torch.manual_seed(0)
    module = Net()
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=logger, callbacks=[geometry], default_root_dir=path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeometryDeclineWarning)
        trainer.fit(module, DataLoader(dataset(), batch_size=16, shuffle=True), ckpt_path=ckpt)
    return SimpleNamespace(geometry=geometry, module=module, trainer=trainer, history=geometry.monitor.history)


def events_of(logger: TensorBoardLogger) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def layout_in(events: Any) -> Any:
    from tensorboard.plugins.custom_scalar import layout_pb2

    (written,) = events.Tensors("custom_scalars__config__")  # once
    return layout_pb2.Layout.FromString(written.tensor_proto.string_val[0])


@pytest.mark.parametrize("prefix", ["", "run"])
def test_every_tag_of_the_layout_is_logged_once_and_the_dimension_comes_first(tmp_path, prefix):
    logger = TensorBoardLogger(tmp_path, sub_dir="sub", prefix=prefix)
    markers = [*gm.MARKER_GROUPS["default"], "cdnv"]
    fit(tmp_path, logger, markers=markers, figures_every_n=0)
    events = events_of(logger)
    tags = events.Tags()["scalars"]
    (category,) = layout_in(events).category
    titles = [chart.title for chart in category.chart]
    assert titles[:2] == ["dimension", "alarm and notice (1: on)"]
    assert titles.index("dimension") < titles.index("utility")
    for chart in category.chart:
        for pattern in chart.multiline.tag:  # as the plugin's server does
            assert len([tag for tag in tags if re.compile(pattern).match(tag)]) == 1, pattern


def test_what_tensorboard_shows_first_is_geometry_and_nothing_is_there_for_charts_alone(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    history = fit(tmp_path, logger, figures_every_n=1).history
    tags = sorted(tag for tag in events_of(logger).Tags()["scalars"] if "geometry" in tag)
    measured = {f"geometry/{LAYER}/{marker}" for marker in history.markers(LAYER)}
    assert set(tags) == measured | {"geometry_cost/seconds", "geometry_cost/overhead"}
    assert tags[0].startswith(f"geometry/{LAYER}/")


def test_the_status_stands_in_the_text_tab_at_each_measurement(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    run = fit(tmp_path, logger, figures_every_n=0, alarm_from=12)
    written = events_of(logger).Tensors("geometry/status/text_summary")
    assert [event.step for event in written] == [6, 12, 18]
    texts = [event.tensor_proto.string_val[0].decode() for event in written]
    assert texts[0].startswith("**geometry healthy: ")
    assert texts[1].startswith("**geometry alarm: The representation of 'head:in' has lost 50 % of its dimension")
    assert texts[2].replace("**", "").split("\n\n") == run.geometry.monitor.status.text.splitlines()


def test_an_alarm_is_drawn_on_the_curves_by_a_run_that_only_an_alarm_makes(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    healthy, faulty = TensorBoardLogger(tmp_path, name="healthy"), TensorBoardLogger(tmp_path, name="faulty")
    fit(tmp_path, healthy, figures_every_n=0)
    assert not Path(healthy.log_dir, "in_alarm").exists()
    history = fit(tmp_path, faulty, figures_every_n=0, alarm_from=12).history
    assert len(list(Path(faulty.log_dir, "in_alarm").iterdir())) == 1  # a file for a run, not for a measurement
    overlay = EventAccumulator(str(Path(faulty.log_dir, "in_alarm")))
    overlay.Reload()
    drawn = sorted(overlay.Scalars(f"geometry/{LAYER}/dimension"), key=lambda event: event.step)
    assert [event.step for event in drawn] == [12, 18]
    np.testing.assert_allclose([e.value for e in drawn], history.series(LAYER, "dimension").values[1:], rtol=1e-6)


def test_a_log_names_the_history_and_its_id(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    history = fit(tmp_path, logger, figures_every_n=0).history
    (written,) = events_of(logger).Tensors("settings/geometry/run/text_summary")
    text = json.loads(written.tensor_proto.string_val[0])
    assert text == {"id": history.run_id, "history": str(Path(logger.log_dir, "geometry.csv"))}
    assert load_run(text["history"]).id == history.run_id


class Nameless(CSVLogger):
    """A logger of no directory, as many loggers of services are, and of a version that may not be known."""

    log_dir = None
    version = None
    save_dir = "logs"

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(log_hparams=lambda *_: None, log_metrics=lambda *_: None, save=lambda: None)


@pytest.mark.parametrize("kind", ["no logger", "nameless logger"])
def test_runs_without_a_directory_leave_a_folder_each_and_no_pile(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    ids = [
        fit(tmp_path, False if kind == "no logger" else Nameless("logs"), figures_every_n=0).history.run_id
        for _ in range(2)
    ]
    root = tmp_path if kind == "no logger" else tmp_path / "logs"
    assert {path.name for path in (root / "geomonitor_runs").iterdir()} == set(ids)
    assert not list(tmp_path.glob("geometry*"))
    assert [load_run(f"{root}/{run_id}").id for run_id in ids] == ids


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_without_a_directory_goes_on_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = fit(tmp_path, False, epochs=1)
    run.trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = fit(tmp_path, False, ckpt=tmp_path / "last.ckpt")
    assert resumed.history.run_id == run.history.run_id
    (file,) = tmp_path.rglob("geometry*.csv")
    assert load_run(file).history.series(LAYER, "dimension").steps.tolist() == [6, 12, 18]


def test_figures_come_at_their_interval(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    run = fit(tmp_path, logger, figures_every_n=2)
    events = events_of(logger)
    assert sorted(events.Tags()["images"]) == [f"geometry/{LAYER}/{name}" for name in FIGURES]
    for name in FIGURES:
        images = events.Images(f"geometry/{LAYER}/{name}")
        assert [image.step for image in images] == [6, 18]
        picture = np.asarray(_opened(images[1].encoded_image_string))
        assert picture.shape[2] == 3
        assert picture.std() > 10
    assert run.geometry.output.references[LAYER].step == 6


def test_training_is_bit_identical_with_and_without_figures(tmp_path):
    with_figures = fit(tmp_path, TensorBoardLogger(tmp_path), figures_every_n=1, alarm_from=6).module
    without = fit(tmp_path, False).module
    for one, other in zip(with_figures.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_draws_on_against_its_first_measurement(tmp_path):
    run = fit(tmp_path, TensorBoardLogger(tmp_path), figures_every_n=2, epochs=1)
    run.trainer.save_checkpoint(tmp_path / "last.ckpt")
    logger = TensorBoardLogger(tmp_path)
    resumed = fit(tmp_path, logger, figures_every_n=2, ckpt=tmp_path / "last.ckpt")
    reference = resumed.geometry.output.references[LAYER]
    assert reference.step == 6
    assert torch.equal(reference.eigenvalues, run.geometry.output.references[LAYER].eigenvalues)
    assert [i.step for i in events_of(logger).Images(f"geometry/{LAYER}/spectrum")] == [18]


def test_what_cannot_be_drawn_or_written_is_told_once_and_ends_nothing(tmp_path, monkeypatch):
    def broken(name: str, *_: Any) -> Any:
        raise ZeroDivisionError(name)

    monkeypatch.setattr("geomonitor.plots.figure_of", broken)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", gm.GeomonitorWarning)
        history = fit(tmp_path, TensorBoardLogger(tmp_path), figures_every_n=1).history
    assert len(history.series(LAYER, "dimension").steps) == 3
    about = [str(w.message) for w in told if isinstance(w.message, gm.GeomonitorWarning)]
    assert len(about) == len(FIGURES)
    assert "the figure 'spectrum' cannot be drawn. ZeroDivisionError: spectrum" in about


def test_a_logger_that_fails_is_told_once_and_the_others_get_theirs(tmp_path, monkeypatch):
    broken, whole = TensorBoardLogger(tmp_path, name="broken"), TensorBoardLogger(tmp_path, name="whole")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(broken.experiment, "add_image", full)
    with pytest.warns(gm.GeomonitorWarning, match="TensorBoardLogger did not take .* no space left") as told:
        fit(tmp_path, [broken, whole], figures_every_n=1)
    assert len([w for w in told if isinstance(w.message, gm.GeomonitorWarning)]) == 1
    assert len(events_of(whole).Images(f"geometry/{LAYER}/spectrum")) == 3


@pytest.mark.parametrize(("every", "messages"), [(1, 1), (None, 0), (0, 0)])
def test_without_matplotlib_there_are_no_figures_and_one_message_where_they_were_asked_for(
    tmp_path, monkeypatch, every, messages
):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else found(name, *a))
    logger = TensorBoardLogger(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", gm.GeomonitorWarning)
        run = fit(tmp_path, logger, figures_every_n=every)
    assert sum("geomonitor[plots]" in str(w.message) for w in told) == messages
    assert events_of(logger).Tags()["images"] == []
    assert run.geometry.monitor.snapshots == {}


def test_a_logger_of_scalars_alone_costs_no_snapshots(tmp_path):
    logger = CSVLogger(tmp_path)
    run = fit(tmp_path, logger, figures_every_n=1, alarm_from=12)
    assert run.geometry.monitor.snapshots == {}
    header, *rows = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    assert f"geometry/{LAYER}/alarm" in header
    assert len(rows) == 3


def test_a_failed_measurement_is_a_gap_and_the_status_is_blind(tmp_path, monkeypatch):
    logger = TensorBoardLogger(tmp_path)
    take, calls = geomonitor.measure.series.take_measurement, []

    def fails_once(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return take(*args, **options)

    monkeypatch.setattr("geomonitor.measure.series.take_measurement", fails_once)
    with pytest.warns(gm.GeomonitorWarning, match="out of memory"):
        fit(tmp_path, logger, figures_every_n=1, on_error="warn")
    events = events_of(logger)
    scalars = events.Scalars(f"geometry/{LAYER}/dimension")
    assert [np.isnan(e.value) for e in scalars] == [False, True, False]
    texts = [t.tensor_proto.string_val[0].decode() for t in events.Tensors("geometry/status/text_summary")]
    assert ["blind" in text.splitlines()[0] for text in texts] == [False, True, False]
    assert [i.step for i in events.Images(f"geometry/{LAYER}/spectrum")] == [6, 18]


def test_wandb_offline_holds_scalars_figures_alarm_and_protocol(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="wandb")
        logger = WandbLogger(save_dir=tmp_path, project="geomonitor-test", offline=True)
        history = fit(tmp_path, logger, figures_every_n=2, alarm_from=12).history
        found = load_run(tmp_path / "geomonitor-test" / logger.version)  # where Lightning puts its checkpoints
        logger.experiment.finish()
    assert found.id == history.run_id == logger.version
    records = wandb_records(tmp_path)
    logged = wandb_logged(records)
    np.testing.assert_allclose(
        logged[f"geometry/{LAYER}/dimension"], history.series(LAYER, "dimension").values, rtol=1e-6
    )
    assert logged[f"geometry/{LAYER}/alarm"] == [0, 1, 1]
    for name in FIGURES:
        assert logged[f"geometry/{LAYER}/{name}/count"] == [1, 1]
    assert len(list(tmp_path.rglob("spectrum_*.png"))) == 2
    (alert,) = [record.alert for record in records if record.HasField("alert")]
    assert alert.title == "geometry alarm"
    assert alert.text.startswith(f"geometry alarm: The representation of '{LAYER}' has lost 50 % of its dimension")
    assert "transfer worse to new classes" in alert.text
    (table,) = tmp_path.rglob("*.table.json")
    assert json.loads(table.read_text())["data"][0][0] == 12
    config = {update.key: update.value_json for record in records for update in record.config.update}
    assert json.loads(config["geometry_protocol"])["directions"] == 30
    assert json.loads(config["geometry_run"]) == {"id": logger.version, "history": str(found.path)}
    (file,) = tmp_path.rglob("run-*.wandb")
    whole, torn = file.read_bytes(), tmp_path / "torn"
    torn.write_bytes(whole)
    records = records_in(torn)
    for size in range(max(len(whole) - 400, 0), len(whole)):  # W&B writes the file in a process of its own
        torn.write_bytes(whole[:size])
        assert records_in(torn) == records[: len(records_in(torn))]


def test_mlflow_file_store_holds_scalars_figures_alarm_and_protocol(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its file store is in maintenance, but needs no database
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(MLFlow only allows|filesystem tracking backend|maintenance).*")
        logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'mlruns'}")
        history = fit(tmp_path, logger, figures_every_n=2, alarm_from=12).history
        client = mlflow.MlflowClient(f"file:{tmp_path / 'mlruns'}")
    plain = LAYER.replace(":", "")  # Lightning leaves the colon out
    series = client.get_metric_history(logger.run_id, f"geometry/{plain}/dimension")
    np.testing.assert_allclose([m.value for m in series], history.series(LAYER, "dimension").values, rtol=1e-6)
    pictures = [file.name for file in tmp_path.rglob("images/*.png")]
    for name in FIGURES:
        steps = [re.search(rf"{name}\Wstep\W(\d+)\W", picture) for picture in pictures]
        assert sorted(int(step[1]) for step in steps if step) == [6, 18]
    (alarm,) = tmp_path.rglob("alarm_step_12.txt")
    assert "transfer worse to new classes" in alarm.read_text()
    (written,) = tmp_path.rglob("artifacts/geometry/run.json")
    path = json.loads(written.read_text())["history"]
    assert load_run(path).id == history.run_id == logger.run_id
    (protocol,) = tmp_path.rglob("artifacts/geometry/protocol.json")
    assert json.loads(protocol.read_text())["directions"] == 30


def test_a_layout_has_charts_only_for_what_was_measured():
    records = [gm.Record(1, 0, "a", "nc1", 1.0), gm.Record(1, 0, "b", "dimension", 1.0), gm.Record(1, 0, "", "x", 1.0)]
    layout = layout_of(records)
    assert {title: list(charts) for title, charts in layout.items()} == {"a": ["collapse"], "b": ["dimension"]}


def test_a_negative_interval_is_an_error():
    with pytest.raises(gm.InputError, match="figures_every_n"):
        LoggerOutput(-1)


def _opened(encoded: bytes) -> Any:
    import PIL.Image

    return PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
