"""Every option of a probe is checked before any data is read; NumPy's integers are integers."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm

X, Y = torch.randn(80, 6), torch.arange(80) % 4
DATASET = TensorDataset(X, Y)
WRONG: dict[str, list[Any]] = {
    "per_class": [0, "5", 2.5, None, True, 10**9, math.nan, math.inf, [5], 10**400],
    "classes": [0, -3, "3", 2.0, ["0", "1"], [0.4, 1.9], True, [[0, 1]], {0: 1, 1: 2}, "01", 10**9, [None], b"01"],
    "seed": [-1, 1.5, "0", None, True, 2**65, np.float64(1), [0]],
    "allow_fewer": ["no", 0, None, 1.0],
    "label_key": [5, 1.0, True, ("y",), "y"],
    "collate_fn": [3, "default", lambda: None, lambda items, more: items],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_probe_set_refuses(name, value):
    with pytest.raises(gm.InputError):
        gm.ProbeSet.from_dataset(DATASET, **{"per_class": 5, name: value})


WRONG_FOR_VALIDATION: dict[str, list[Any]] = {
    **{name: WRONG[name] for name in ("classes", "seed")},
    "per_class": [0, 1, "5", 2.5, None, True, math.nan],
    "label_key": [1.0, True, ("y",)],
    "labels": [3, "label", lambda: None, lambda batch, more: None],
    "ids": [3, torch.arange(4), lambda: None],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_FOR_VALIDATION.items() for value in values]
)
def test_a_validation_probe_refuses(name, value):
    with pytest.raises(gm.InputError):
        gm.ValidationProbe(**{"classes": 4, "per_class": 5, name: value})


def test_a_validation_probe_without_classes_is_refused():
    with pytest.raises(gm.InputError, match="classes"):
        gm.ValidationProbe(classes=None)  # type: ignore[arg-type]


NUMPY: list[dict[str, Any]] = [
    {"per_class": np.bincount(Y.numpy()).min(), "seed": np.uint8(0)},
    {"per_class": np.int32(20), "classes": np.int64(4), "label_key": np.int64(1)},
    {"per_class": 20, "classes": np.arange(4), "allow_fewer": np.bool_(False)},
    {"per_class": 20, "classes": torch.arange(4)},
]


@pytest.mark.parametrize("options", NUMPY)
def test_integers_of_numpy_become_those_of_python(options):
    probe = gm.ProbeSet.from_dataset(DATASET, **options)
    plain = gm.ProbeSet.from_dataset(DATASET, per_class=20)
    assert (probe.fingerprint, probe.classes) == (plain.fingerprint, plain.classes)
    kinds = [type(value) for value in (probe.per_class, probe.seed, *probe.classes)]
    assert set(kinds) == {int}
    file = io.BytesIO()
    monitor = gm.GeometryMonitor(probe, panel=None)
    monitor.measure(nn.Linear(6, 4), step=1)
    torch.save(monitor.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["protocol"]["per_class"] == 20


@pytest.mark.parametrize("classes", [np.int64(3), np.array([0, 1, 2]), (2, 1, 0), torch.tensor([0, 1, 2])])
def test_of_a_validation_probe_also(classes):
    probe = gm.ValidationProbe(classes=classes, per_class=np.int16(4), seed=np.int64(2))
    assert probe.classes == (0, 1, 2)
    assert {type(value) for value in (*probe.classes, probe.per_class, probe.seed)} == {int}
