"""What one measurement makes of NaN and Inf, of dtypes and devices, and of many repetitions."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from tests.options import grouped
from tests.processes import in_processes

CLASSES, PER_CLASS, KEY = 4, 15, "geometry/penultimate/"


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % CLASSES
    centers = torch.randn(CLASSES, 6, generator=generator)
    return TensorDataset(centers[labels] + torch.randn(120, 6, generator=generator), labels)


PROBE = gm.ProbeSet.from_dataset(dataset(), per_class=PER_CLASS)


class Net(nn.Module):
    """Spoils chosen rows of one of its two layers."""

    def __init__(self, spoil: dict[int, float] | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 32), nn.Linear(32, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        self.spoil = spoil or {}

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(self.first(x).relu()).relu()
        for position, value in self.spoil.items():
            row = PROBE.dataset[int(PROBE.indices[position])][0].to(x)
            z[(x == row).all(1), 3] = value
        return self.head(z)


def monitor(**options) -> gm.GeometryMonitor:
    return gm.GeometryMonitor(PROBE, **grouped(**{"directions": 40, "batch_size": 25} | options))


def values(records: list[gm.Record]) -> dict[str, float]:
    return {r.key: r.value for r in records if r.marker not in ("seconds", "overhead")}


def _spoiled(rank: int = 0, spoil: dict[int, float] | None = None) -> dict[str, float]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeomonitorWarning)
        layers = {"body": "first:output", "penultimate": "head:input"}
        return values(monitor(markers="all", layers=layers).measure(Net(spoil).double(), step=1, forward=_in_double))


def _in_double(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.double())


NAN_AND_INF = {0: math.nan, 3: math.inf, 20: -math.inf}


class TestNonfinite:
    def test_none_are_reported_as_none(self):
        assert values(monitor().measure(Net(), step=1))[KEY + "nonfinite_rows"] == 0

    def test_spoiled_points_are_counted_and_the_rest_is_measured(self):
        with pytest.warns(gm.GeomonitorWarning, match=r"class: rows = \{0: 2, 1: 1\}; it is measured on the rest"):
            monitor(markers=["dimension", "nc1"]).measure(Net(NAN_AND_INF), step=1)
        measured = _spoiled(spoil=NAN_AND_INF)
        assert measured[KEY + "nonfinite_rows"] == 3
        assert measured["geometry/body/nonfinite_rows"] == 0
        kept = torch.tensor([i for i in range(len(PROBE)) if i not in NAN_AND_INF])
        with torch.no_grad():
            net, x = Net().double(), torch.stack([PROBE.dataset[i][0] for i in PROBE.indices]).double()
            rows = net.body(net.first(x).relu()).relu()
        geometry = gm.manifold_geometry(rows[kept], PROBE.labels[kept], directions=40, ridge=gm.GeometryOptions().ridge)
        assert measured[KEY + "dimension"] == pytest.approx(geometry.dimension.item(), rel=1e-9)
        assert measured[KEY + "participation_ratio"] == pytest.approx(
            gm.participation_ratio(rows[kept]).item(), rel=1e-9
        )
        assert math.isfinite(measured["geometry/body/nc1"])

    def test_a_class_with_too_few_left_makes_its_layer_nan_and_says_so(self):
        spoil = dict.fromkeys(range(14), math.nan)  # one point of class 0 is left
        layers = {"body": "first:output", "penultimate": "head:input"}
        watcher = monitor(layers=layers, markers=["dimension", "participation_ratio"])
        with pytest.warns(gm.GeomonitorWarning, match=r"fewer than 2 points are left of classes \[0\]"):
            measured = values(watcher.measure(Net(spoil), step=1))
        assert measured[KEY + "nonfinite_rows"] == 14
        assert math.isnan(measured[KEY + "dimension"])
        assert math.isnan(measured[KEY + "participation_ratio"])
        assert math.isfinite(measured["geometry/body/dimension"])
        watcher.measure(Net(spoil), step=2)  # told once: warnings are errors here

    def test_drift_needs_all_points_and_comes_back_with_them(self):
        watcher = monitor(markers=["dimension", "drift"])
        watcher.measure(Net(), step=1)
        with pytest.warns(gm.GeomonitorWarning, match="measured on the rest"):
            assert math.isnan(values(watcher.measure(Net(NAN_AND_INF), step=2))[KEY + "drift"])
        assert values(watcher.measure(Net(), step=3))[KEY + "drift"] == pytest.approx(0, abs=1e-12)

    def test_processes_agree_on_what_is_left_out(self):
        alone = _spoiled(spoil=NAN_AND_INF)
        for result in in_processes(_spoiled, NAN_AND_INF):
            assert result == pytest.approx(alone, rel=1e-8, nan_ok=True)


@pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float64, 1e-5), (torch.float32, 1e-9), (torch.float16, 0.05), (torch.bfloat16, 0.2)]
)
def test_dtypes_of_activations(dtype, rel):
    """Half precision gives other activations, so other values; none is undefined."""
    exact = values(monitor().measure(Net(), step=1))
    measured = values(monitor().measure(Net().to(dtype), step=1, forward=lambda model, x: model(x.to(dtype))))
    assert measured[KEY + "dimension"] == pytest.approx(exact[KEY + "dimension"], rel=rel)
    assert measured[KEY + "participation_ratio"] == pytest.approx(exact[KEY + "participation_ratio"], rel=rel)
    assert all(math.isfinite(value) for value in measured.values())


class Mixed(Net):
    """Layers of four dtypes in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.head = self.first.double(), self.body.bfloat16(), self.head.half()

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(self.first(x.double()).relu().bfloat16()).relu()
        return self.head(z.half()).float()


def test_several_dtypes_in_one_model():
    watcher = monitor(layers={"first": "first:output", "body": "body:output", "head": "head:input"}, markers="all")
    measured = values(watcher.measure(Mixed(), step=1))
    assert all(math.isfinite(measured[f"geometry/{layer}/dimension"]) for layer in ("first", "body", "head"))
    assert math.isfinite(measured["geometry/head/nc4"])


class Spread(Net):
    """Its parts lie on two devices."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.body.to(device)
        self.head.to(device)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.first(x).relu().to(self.head.weight.device)).relu())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_spread_over_devices():
    options = {"layers": {"early": "first:output", "late": "head:input"}, "markers": "all"}
    measured = values(monitor(**options).measure(Spread("cuda"), step=1))
    assert measured == pytest.approx(values(monitor(**options).measure(Net(), step=1)), rel=1e-3, nan_ok=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu():
    measured = values(monitor(markers="all").measure(Net().cuda(), step=1))
    assert measured == pytest.approx(values(monitor(markers="all").measure(Net(), step=1)), rel=1e-3, nan_ok=True)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _measured_often(rank: int) -> tuple[int, int, bool]:
    """Growth of live tensors and resident bytes over 200 measurements after 100 others, and whether a hook is left."""
    watcher, model, hooks = monitor(directions=10, markers=["dimension", "nc1", "drift", "accuracy"]), Net(), False

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    for step in range(300):
        watcher.measure(model, step=step)
        hooks |= any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        if step == 99:  # by then the allocator has the arenas that it wants
            resident, alive = _resident_bytes(), tensors()
    return tensors() - alive, _resident_bytes() - resident, hooks


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_constant_over_200_measurements_and_no_hook_is_left():
    # In a process of its own: what other tests left behind is freed now and then and would count here.
    ((tensors, resident, hooks),) = in_processes(_measured_often, world_size=1)
    assert not hooks
    assert tensors == 0
    # What grows is the history: 8 records a measurement, 4.2 KiB by tracemalloc, 0.8 MiB in all. Resident memory grew
    # by 4.3 MiB, ever more slowly: the rest is the allocator's, so the bound is twice that.
    assert resident < 8 * 2**20
