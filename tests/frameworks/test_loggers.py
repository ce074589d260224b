"""What the loggers of each framework hold after a run that ends in an alarm: the keys, and the text of the alarm.

All are offline: W&B writes a file, MLflow a database of SQLite. Lightning has tests/integrations/test_loggers.py. Those
callbacks for Keras that write to TensorBoard and W&B need TensorFlow, and fastai's WandbCallback fails in any Learner
(2.8.12: ``vars(100)``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import geomonitor as gm
from tests.frameworks.common import DIMENSION, MARKERS, digits_probe, framework, parallel_options
from tests.loggers_on_disk import csv_logged, mlflow_logged, tensorboard_logged, wandb_logged, wandb_records

pytestmark = pytest.mark.filterwarnings("ignore")  # of the loggers themselves

ALARM = "geometry/penultimate/alarm"
TEXT = "geometry alarm: The representation has lost 50 % of its dimension"


def with_transformers(logger: str, folder: Path, **options: Any) -> gm.GeometryMonitor:
    framework("transformers", "transformers")
    from tests.frameworks import test_transformers as runs

    callback = runs.GeometryCallback(runs.reuters_probe(), **options)
    runs.trainer(folder, [callback], report_to=[logger]).train()
    return callback.monitor


def with_ignite(logger: str, folder: Path, **options: Any) -> gm.GeometryMonitor:
    framework("ignite", "ignite")
    from ignite.engine import Events
    from ignite.handlers import mlflow_logger, tensorboard_logger, wandb_logger

    from tests.frameworks import test_ignite as runs

    made = {
        "tensorboard": lambda: tensorboard_logger.TensorboardLogger(log_dir=str(folder)),
        "wandb": wandb_logger.WandBLogger,
        "mlflow": mlflow_logger.MLflowLogger,
    }[logger]()
    handler, model = runs.GeometryHandler(digits_probe(), **options), runs.digits_model()
    trainer, _ = runs.engine(model)
    made.attach_output_handler(trainer, Events.EPOCH_COMPLETED, "train", metric_names="all")
    handler.attach(trainer, model)
    trainer.run(runs.loader(), max_epochs=3)
    made.close()
    return handler.monitor


def with_keras(logger: str, folder: Path, **options: Any) -> gm.GeometryMonitor:
    keras = framework("keras", "keras")
    from tests.frameworks import test_keras as runs

    if logger == "csv":
        made: Any = keras.callbacks.CSVLogger(folder / "log.csv")
    else:
        made = framework("mlflow.keras", "loggers").MlflowCallback()
    callback = runs.GeometryCallback(digits_probe(), **options)
    runs.fit(runs.model(), [made, callback])
    if logger == "mlflow":
        framework("mlflow", "loggers").flush_async_logging()
        framework("mlflow", "loggers").end_run()
    return callback.monitor


def with_skorch(logger: str, folder: Path, **options: Any) -> gm.GeometryMonitor:
    framework("skorch", "skorch")
    from skorch.callbacks import MlflowLogger, TensorBoard, WandbLogger
    from torch.utils.tensorboard import SummaryWriter

    from tests.frameworks import test_skorch as runs

    if logger == "tensorboard":
        made: Any = TensorBoard(SummaryWriter(str(folder)))
    elif logger == "wandb":
        made = WandbLogger(framework("wandb", "loggers").init(), save_model=False)
    else:
        made = MlflowLogger(framework("mlflow", "loggers").start_run(), create_artifact=False)
    callback = runs.GeometryCallback(digits_probe(), **options)
    runs.fit(runs.net([made, callback]))
    if logger == "mlflow":
        framework("mlflow", "loggers").end_run()
    return callback.adapter_.monitor


def with_fastai(logger: str, folder: Path, **options: Any) -> gm.GeometryMonitor:
    framework("fastai.learner", "fastai")
    from tests.frameworks import test_fastai as runs

    if logger == "csv":
        made: Any = framework("fastai.callback.progress", "fastai").CSVLogger()
    else:
        callbacks = framework("fastai.callback.tensorboard", "fastai")
        made = callbacks.TensorBoardCallback(str(folder), trace_model=False, log_preds=False)
    callback = runs.GeometryCallback(digits_probe(), **options)
    runs.fit(runs.learner([made, callback], folder))
    return callback.monitor


def with_accelerate(logger: str, folder: Path, **options: Any) -> gm.GeometryMonitor:
    framework("accelerate", "accelerate").state.AcceleratorState._reset_state(reset_partial_state=True)
    from tests.frameworks import test_recipes as runs

    return recipe(runs.with_accelerate, folder, options, log_with=logger)


def with_fabric(logger: str, folder: Path, **options: Any) -> gm.GeometryMonitor:
    framework("lightning", "lightning")
    framework("accelerate", "accelerate")
    from lightning.fabric import loggers as of_fabric
    from lightning.pytorch import loggers

    from tests.frameworks import test_recipes as runs

    made: Any = {
        "csv": lambda: of_fabric.CSVLogger(folder, flush_logs_every_n_steps=1),
        "tensorboard": lambda: of_fabric.TensorBoardLogger(folder),
        "wandb": lambda: loggers.WandbLogger(save_dir=folder, offline=True),
        "mlflow": lambda: loggers.MLFlowLogger(tracking_uri=os.environ["MLFLOW_TRACKING_URI"]),
    }[logger]()
    return recipe(runs.with_fabric, folder, options, loggers=[made])


def recipe(loop: Any, folder: Path, options: dict[str, Any], **own: Any) -> gm.GeometryMonitor:
    monitor = gm.GeometryMonitor(
        digits_probe(), panel=options["panel"], geometry=options["geometry"], markers=MARKERS, on_error="raise"
    )
    loop(folder, range(3), gm.MonitoredRun(monitor, on_alarm=options["on_alarm"]), **own)
    return monitor


RUNS: dict[Callable[..., gm.GeometryMonitor], dict[str, str]] = {
    with_transformers: {"tensorboard": "eval/{}", "wandb": "eval/{}", "mlflow": "eval_{}"},
    with_ignite: {"tensorboard": "train/{}", "wandb": "train/{}", "mlflow": "train {}"},
    with_keras: {"csv": "{}", "mlflow": "{}"},
    with_skorch: {"tensorboard": "{}", "wandb": "{}", "mlflow": "{}"},
    with_fastai: {"csv": "{}", "tensorboard": "{}"},
    with_accelerate: {"tensorboard": "{}", "wandb": "{}", "mlflow": "{}"},
    with_fabric: {"csv": "{}", "tensorboard": "{}", "wandb": "{}", "mlflow": "{}"},
}
"""Loggers of each, and what they make of a key."""


@pytest.mark.parametrize(
    ("train", "logger", "named"),
    [(train, logger, named) for train, loggers in RUNS.items() for logger, named in loggers.items()],
    ids=lambda each: getattr(each, "__name__", each).removeprefix("with_"),
)
def test_a_logger_holds_the_keys_and_an_alert_the_text(tmp_path, monkeypatch, train, logger, named):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    places = {"WANDB_DIR": tmp_path, "MLFLOW_TRACKING_URI": uri, "TENSORBOARD_LOGGING_DIR": tmp_path}
    for name, value in {**places, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    package = framework({"csv": "csv"}.get(logger, logger), "loggers")
    if logger == "mlflow":
        package.set_tracking_uri(uri)
    texts: list[str] = []
    runs: list[Path] = []

    def told(verdict: gm.Verdict, text: str) -> None:
        texts.append(text)
        if logger == "wandb":
            package.alert(f"geometry of {verdict.layer}", text)
            runs.append(Path(package.run.dir).parent)  # W&B has read WANDB_DIR once, in the first of these tests

    second_epoch = 18 if train is with_transformers else 20
    options = parallel_options(str(tmp_path), texts, second_epoch) | {"on_alarm": told}
    monitor = train(logger, tmp_path, **options)
    if logger == "wandb":
        package.finish()
        records = wandb_records(runs[0])
    read = {
        "csv": lambda key: csv_logged(tmp_path, key),
        "tensorboard": lambda key: tensorboard_logged(tmp_path, key),
        "mlflow": lambda key: mlflow_logged(uri, key),
        "wandb": lambda key: wandb_logged(records)[key],
    }[logger]
    measured = monitor.history.series("penultimate", "dimension").values.tolist()
    assert len(measured) == 2
    assert read(named.format(DIMENSION)) == pytest.approx(measured, rel=1e-6)
    assert read(named.format(ALARM)) == [0, 1]
    assert len(texts) == 1
    if logger == "wandb":
        (alert,) = [record.alert for record in records if record.HasField("alert")]
        assert alert.title == "geometry of penultimate"
        assert alert.text.startswith(TEXT)
