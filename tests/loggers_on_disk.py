"""What loggers have written to disk, without their services: W&B offline, MLflow in SQLite, TensorBoard, CSV."""

from __future__ import annotations

import csv
import json
import struct
import time
from pathlib import Path
from typing import Any


def wandb_records(folder: Path) -> list[Any]:
    """The records of the one offline run below a folder, once it is written to its end by the process of W&B."""
    end = time.monotonic() + 60
    while True:
        files = list(folder.rglob("run-*.wandb"))
        records = records_in(files[0]) if files else []
        if any(record.HasField("exit") for record in records):
            assert len(files) == 1
            return records
        assert time.monotonic() < end, f"no run was written to its end: {files}"
        time.sleep(0.2)


def wandb_logged(records: list[Any]) -> dict[str, list[Any]]:
    """What was logged by key; a key that is nested has its parts joined by ``/``."""
    logged: dict[str, list[Any]] = {}
    for record in records:
        for item in record.history.item:
            logged.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
    return logged


def mlflow_logged(uri: str, key: str) -> list[float]:
    """Values of a metric of the one run in a store that has it."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (run,) = [run for run in runs if key in run.data.metrics]
    return [metric.value for metric in client.get_metric_history(run.info.run_id, key)]


def tensorboard_logged(folder: Path, tag: str) -> list[float]:
    """Values of a scalar in the one folder of events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = {file.parent for file in folder.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(place))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def csv_logged(folder: Path, column: str) -> list[float]:
    """Values of a column of the one table that is not of geomonitor."""
    (table,) = [file for file in folder.rglob("*.csv") if file.name != "geometry.csv"]
    with table.open(encoding="utf-8", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def records_in(file: Path) -> list[Any]:
    """A LevelDB log of protocol buffers behind a header of seven bytes, as far as it is written: W&B may be writing."""
    from wandb.proto import wandb_internal_pb2

    block, data, records, parts = 32768, file.read_bytes(), [], b""
    place = 7
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if place + 7 + length > len(data):
            break
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records
