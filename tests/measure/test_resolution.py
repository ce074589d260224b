"""Markers whose value would be rounding are NaN, with a warning; nothing else is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomonitor as gm
from geomonitor.markers.layer_points import LayerPoints
from geomonitor.measure.resolution import VARIATION_MARKERS, variation_is_rounding
from tests.glue.clouds import gaussian_clouds

CLASSES, POINTS, UNITS = 4, 12, 24


def points_of(noise: float) -> LayerPoints:
    return LayerPoints(*gaussian_clouds(CLASSES, POINTS, UNITS, noise))


@pytest.mark.parametrize(
    ("noise", "dtype", "hidden"),
    [
        (1e-3, "bfloat16", True),
        (1e-2, "bfloat16", True),
        (1e-1, "bfloat16", False),
        (1e-4, "float16", True),
        (1e-2, "float16", False),
        (1e-6, "float32", True),
        (1e-4, "float32", False),
        (1e-6, "float64", False),
        (1e-3, "an integer dtype", False),
    ],
)
def test_variation_against_rounding(noise: float, dtype: str, hidden: bool) -> None:
    assert variation_is_rounding(points_of(noise), dtype) is hidden


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_scale_and_rotation_do_not_matter(scale: float) -> None:
    features, labels = gaussian_clouds(CLASSES, POINTS, UNITS, 1e-3)
    rotation = torch.linalg.qr(torch.randn(UNITS, UNITS, generator=torch.Generator().manual_seed(0)).double()).Q
    moved = LayerPoints(scale * features @ rotation, labels)
    assert variation_is_rounding(moved, "bfloat16")
    assert not variation_is_rounding(moved, "float32")


def test_one_point_a_class_and_zero_features_hide_nothing() -> None:
    assert not variation_is_rounding(LayerPoints(torch.eye(3), torch.arange(3)), "bfloat16")
    assert not variation_is_rounding(LayerPoints(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])), "bfloat16")


class Cloud(torch.utils.data.Dataset[Any]):
    def __init__(self, noise: float) -> None:
        features, self.labels = gaussian_clouds(CLASSES, POINTS, UNITS, noise)
        self.features = features.float()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[index], int(self.labels[index])


def measured(noise: float, dtype: torch.dtype) -> dict[str, float]:
    model = nn.Sequential(nn.Identity(), nn.Linear(UNITS, CLASSES)).to(dtype)
    probe = gm.ProbeSet.from_dataset(Cloud(noise), per_class=POINTS)
    watch = gm.GeometryMonitor(probe, layers={"body": "0"}, markers="default", geometry={"directions": 20}, panel=None)
    return {record.marker: record.value for record in watch.measure(model, step=1)}


@pytest.mark.parametrize(("noise", "dtype"), [(1e-3, torch.bfloat16), (1e-4, torch.float16)])
def test_collapsed_features_in_half_precision_are_nan_with_a_reason(noise: float, dtype: torch.dtype) -> None:
    with pytest.warns(gm.GeomonitorWarning, match="little more than the rounding of .*float16: .*nc1.* are NaN"):
        found = measured(noise, dtype)
    assert all(math.isnan(found[name]) for name in VARIATION_MARKERS & found.keys())
    assert found["dead_units"] == 0
    assert math.isfinite(found["capacity"])


@pytest.mark.parametrize(("noise", "dtype"), [(1e-3, torch.float32), (0.3, torch.bfloat16)])
def test_what_the_dtype_resolves_is_measured(noise: float, dtype: torch.dtype) -> None:
    found = measured(noise, dtype)
    assert all(math.isfinite(found[name]) for name in (*VARIATION_MARKERS & found.keys(), "capacity", "dimension"))


class TestProtocol:
    def test_a_saved_run_without_a_ridge_is_not_joined_with_the_default(self) -> None:
        probe = gm.ProbeSet.from_dataset(Cloud(0.3), per_class=POINTS)
        old = gm.GeometryMonitor(probe, layers="0", geometry={"ridge": 0.0}, panel=None).state_dict()
        older = {**old, "protocol": {name: v for name, v in old["protocol"].items() if name != "ridge"}}
        for state in (old, older):
            with pytest.raises(gm.InputError, match=r"ridge: 0\.0 -> 0\.0001.*geometry=\{'ridge': 0\.0\}"):
                gm.GeometryMonitor(probe, layers="0", panel=None).load_state_dict(state)
            gm.GeometryMonitor(probe, layers="0", geometry={"ridge": 0.0}, panel=None).load_state_dict(state)
            gm.GeometryMonitor(probe, layers="0", panel=None).load_state_dict(state, allow_protocol_change=True)
