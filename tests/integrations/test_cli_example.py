"""The project in examples/lightning_cli: it runs, its saved and printed configurations run again."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2] / "examples/lightning_cli"
CALLBACK = "geomonitor_integrations.lightning.GeometryCallback"
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
    pytest.mark.filterwarnings("ignore:.*Manifold geometry.*did not converge"),
]


def run(monkeypatch: Any, folder: Path, config: Path, *more: str) -> dict[str, str]:
    """Train as a user does; the dimensions by step."""
    monkeypatch.setattr(
        sys, "argv", ["train.py", "fit", "--config", str(config), f"--trainer.default_root_dir={folder}", *more]
    )
    runpy.run_path(str(PROJECT / "train.py"), run_name="__main__")
    with (folder / "geometry.csv").open() as file:
        return {row["step"]: row["value"] for row in csv.DictReader(file) if row["marker"] == "dimension"}


def test_it_runs_and_its_saved_configuration_again(tmp_path, monkeypatch):
    short = ("--trainer.max_epochs=2", "--trainer.enable_model_summary=false")
    first = run(monkeypatch, tmp_path / "a", PROJECT / "config.yaml", *short)
    assert list(first) == ["10", "20"]
    saved = tmp_path / "a" / "config.yaml"
    options = yaml.safe_load(saved.read_text())["trainer"]["callbacks"][0]["init_args"]
    assert (options["probe"], options["per_class"], options["geometry"]["directions"]) == ("val", 50, 100)
    assert run(monkeypatch, tmp_path / "b", saved) == first


def test_the_printed_configuration_is_complete(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", str(PROJECT / "config.yaml"), "--print_config"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(PROJECT / "train.py"), run_name="__main__")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["callbacks"][0]["class_path"] == CALLBACK
    assert printed["trainer"]["callbacks"][0]["init_args"]["probe"] == "val"


def test_a_function_of_the_trainer_from_yaml(tmp_path, monkeypatch):
    config = yaml.safe_load((PROJECT / "config.yaml").read_text())
    config["trainer"] |= {"max_epochs": 1, "enable_model_summary": False}
    config["trainer"]["callbacks"][0]["init_args"] |= {"probe": "tests.integrations.test_late_probe.of_trainer"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert list(run(monkeypatch, tmp_path / "run", tmp_path / "config.yaml")) == ["10"]


def test_a_monitor_from_yaml(tmp_path, monkeypatch):
    config = yaml.safe_load((PROJECT / "config.yaml").read_text())
    config["trainer"] |= {"max_epochs": 1, "enable_model_summary": False}
    points = {"class_path": "geomonitor.ValidationProbe", "init_args": {"classes": 10, "per_class": 20}}
    monitor = {
        "class_path": "geomonitor.GeometryMonitor",
        "init_args": {"probe": points, "geometry": {"directions": 20}},
    }
    config["trainer"]["callbacks"][0]["init_args"] = {"probe": monitor}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert list(run(monkeypatch, tmp_path / "run", tmp_path / "config.yaml")) == ["10"]
