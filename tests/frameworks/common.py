"""Data and comparisons for the runs in all frameworks."""

from __future__ import annotations

import copy
import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.history.records import Series

REQUIRED = bool(os.environ.get("GEOMONITOR_FRAMEWORKS"))
"""Set by `make test-frameworks`: a framework that is missing there is an error."""
MARKERS = ("dimension", "participation_ratio", "nc1")
OPTIONS: dict[str, Any] = {"geometry": {"directions": 10}, "markers": MARKERS, "on_error": "raise"}
DIMENSION = "geometry/penultimate/dimension"


def framework(name: str, extra: str) -> Any:
    """The module of a framework; if it is missing, a skip that names the extra."""
    if REQUIRED:
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f'{name} is missing: pip install "geomonitor[{extra}]"')


@functools.cache
def digits() -> tuple[TensorDataset, TensorDataset]:
    """The digits of scikit-learn, 8 x 8: 1,000 to train on, 797 held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    return TensorDataset(x[:1000], y[:1000]), TensorDataset(x[1000:], y[1000:])


def digits_probe(per_class: int = 15) -> gm.ProbeSet:
    train, held_out = digits()
    return gm.ProbeSet.from_dataset(held_out, per_class=per_class, train=train)


def digits_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))


def low_from(step: int) -> Any:
    """A detector that finds every series low from a step on, whatever its values."""

    def detector(series: Series) -> gm.Verdict:
        low = bool(len(series.steps) and series.steps[-1] >= step)
        return gm.Verdict(low, series.layer, series.marker, 1.0, 2.0, 0.1, since_step=step, checks=1)

    return detector


def declining(step: int) -> gm.Panel:
    return gm.Panel(("dimension",), low_from(step))


def series_of(adapter: Any, marker: str = "dimension") -> Series:
    return adapter.monitor.history.series("penultimate", marker)


def records_of(adapter: Any) -> list[str]:
    """All that was measured, to the last bit."""
    return [repr(record._replace(time=0.0)) for record in adapter.monitor.history if record.layer]


class OfRank(NamedTuple):
    """What one of two processes has at the end of a run that an alarm at its second epoch ends."""

    measured: dict[str, list[tuple[int, float]]]
    """step and value, by marker"""
    weights: dict[str, Any]
    texts: list[str]
    """of ``on_alarm``"""


def parallel_options(folder: str, texts: list[str], second_epoch: int = 10) -> dict[str, Any]:
    """Options of a callback in a run whose second epoch is the last one, for its alarm."""
    told = {"on_alarm": lambda verdict, text: texts.append(text)}
    return {**OPTIONS, **told, "panel": declining(second_epoch), "stop_on_decline": True, "directory": folder}


def of_rank(monitor: gm.GeometryMonitor, weights: Mapping[str, Tensor], texts: list[str]) -> OfRank:
    series = {marker: monitor.history.series("penultimate", marker) for marker in MARKERS}
    measured = {marker: list(zip(s.steps.tolist(), s.values.tolist(), strict=True)) for marker, s in series.items()}
    return OfRank(measured, {name: tensor.detach().clone() for name, tensor in weights.items()}, texts)


class Weights:
    """Copies of the weights at each measurement, by step."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, Tensor]] = {}

    def keep(self, step: int, model: nn.Module) -> None:
        self.by_step[step] = copy.deepcopy(model.state_dict())


def require_curve_of_plain_loop(adapter: Any, weights: Weights, model: nn.Module, steps: Sequence[int]) -> None:
    """Fails unless a plain loop over the same weights, with a monitor of its own, measures the same to 1e-6."""
    model = copy.deepcopy(model)
    monitor = gm.GeometryMonitor(adapter.monitor.probe, layers=adapter.monitor.layers, **OPTIONS)
    for step in steps:
        model.load_state_dict(weights.by_step[step])
        monitor.measure(model, step=step)
    for marker in MARKERS:
        plain, own = monitor.history.series("penultimate", marker), series_of(adapter, marker)
        assert own.steps.tolist() == list(steps)
        np.testing.assert_allclose(own.values, plain.values, rtol=1e-6)


def require_same_weights(first: nn.Module, second: nn.Module) -> None:
    """Fails unless two models have the same parameters and buffers, bit by bit."""
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
