"""A series has one dtype, and one batch size if features depend on the batch: another one is refused or named."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.measure.identity import Identity, depends_on_batch, points_at_once
from geomonitor.measure.protocol import differences

LABELS = torch.arange(80) % 4
INPUTS = torch.randn(80, 6, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(6)[LABELS]


def monitor(dataset: Any = None, collate_fn: Any = None, **options: Any) -> gm.GeometryMonitor:
    held = TensorDataset(INPUTS, LABELS) if dataset is None else dataset
    probe = gm.ProbeSet.from_dataset(held, per_class=10, collate_fn=collate_fn)
    return gm.GeometryMonitor(probe, **{"geometry": {"directions": 10}, "panel": None, **options})


def network(*between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), *between, nn.ReLU(), nn.Linear(16, 4))


class LessTheMean(nn.Module):
    """Its features depend on the batch without any normalisation layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class ToTheLongest(nn.Module):
    """The mean over the padded length of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(tokens.mean(dim=1))


def padded(items: list[Any]) -> Any:
    lengths = [1 + index % 7 for index in range(len(items))]
    rows = [torch.stack([x] * length) for (x, _), length in zip(items, lengths, strict=True)]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([y for _, y in items])


DEPENDENT = {
    "batch statistics": (lambda: network(nn.BatchNorm1d(16, track_running_stats=False)), None),
    "batch mean": (lambda: network(LessTheMean()), None),
    "padding": (ToTheLongest, padded),
    "one batch size alone": (lambda: network(nn.Unflatten(0, (20, 2)), nn.Flatten(0, 1)), None),
}
INDEPENDENT = {
    "plain": (network, None),
    "running statistics": (lambda: network(nn.BatchNorm1d(16)), None),
    "layer norm, dropout": (lambda: network(nn.LayerNorm(16), nn.Dropout()), None),
    "bfloat16": (lambda: network().bfloat16(), None),
    "float64": (lambda: network().double(), None),
}


@pytest.mark.parametrize("kind", [*DEPENDENT, *INDEPENDENT])
def test_the_batch_size_is_part_of_the_protocol_where_features_depend_on_it(kind):
    make, collate_fn = {**DEPENDENT, **INDEPENDENT}[kind]
    first = monitor(collate_fn=collate_fn, markers=["participation_ratio"])
    first.measure(make(), step=0)
    assert first.protocol.get("batch_size") == (40 if kind in DEPENDENT else None)
    state = first.state_dict()
    same, large, small = (
        monitor(collate_fn=collate_fn, batch_size=size, markers=["participation_ratio"]) for size in (128, 40, 8)
    )
    for known in (same, large, small):
        known.load_state_dict(state)
    for known in (same, large):  # 40 points in one forward pass
        assert math.isfinite(known.measure(make(), step=1)[0].value)
    if kind in DEPENDENT:
        with pytest.raises(gm.InputError, match="measured with 40 points in a forward pass, not 8"):
            small.measure(make(), step=1)
        run = gm.MonitoredRun(monitor(collate_fn=collate_fn, batch_size=8, markers=["participation_ratio"]))
        run.load_state_dict(state)
        with pytest.raises(gm.InputError, match="not 8"):  # before it trains
            run.start(make())
    else:
        assert math.isfinite(small.measure(make(), step=1)[0].value)


def test_the_batch_size_of_a_run_is_looked_at_once():
    passes: list[int] = []

    def forward(model: nn.Module, inputs: Tensor) -> Any:
        passes.append(len(inputs))
        return model(inputs)

    first = monitor(forward=forward, batch_size=16)
    for step in range(3):
        first.measure(network(), step=step)
    assert passes == [8, 14, 13, 13, 2, *[14, 13, 13] * 2]  # eight points to find the layer
    passes.clear()
    resumed = monitor(forward=forward, batch_size=16)
    resumed.load_state_dict(first.state_dict())
    resumed.measure(network(), step=3)
    assert passes == [8, 14, 13, 13]


@pytest.mark.parametrize("ids", [{"batch_size": 1}, {"batch_size": 2}, {"batch_size": 3}])
def test_small_batches_are_compared_too(ids):
    watcher = monitor(markers=["participation_ratio"], **ids)
    watcher.measure(network(LessTheMean()), step=0)
    assert watcher.protocol["batch_size"] == ids["batch_size"]


@pytest.mark.parametrize(
    ("before", "after"), [("float32", "float64"), ("float32", "bfloat16"), ("bfloat16", "float32")]
)
def test_another_dtype_is_named_within_a_run_and_after_it(before, after):
    one, other = (network().to(getattr(torch, name)) for name in (before, after))
    first = monitor()
    first.measure(one, step=0)
    assert first.protocol["dtypes"] == {"penultimate": before}
    resumed = monitor()
    resumed.load_state_dict(first.state_dict())
    raising = monitor(on_error="raise")
    raising.load_state_dict(first.state_dict())
    for watcher in (first, resumed):
        with pytest.warns(gm.GeomonitorWarning, match=f"another dtype than before .penultimate: {before} -> {after}"):
            watcher.measure(other, step=1)
        watcher.measure(one, step=2)
        values = watcher.history.series("penultimate", "dimension").values.tolist()
        assert [math.isnan(value) for value in values] == [False, True, False]
    with pytest.raises(gm.MeasurementError, match="another dtype"):
        raising.measure(other, step=1)
    first.reset()
    first.measure(other, step=0)
    assert first.protocol["dtypes"] == {"penultimate": after}


def test_data_that_changed_underneath_are_refused_in_the_run_and_after_it():
    inputs = INPUTS.clone()
    first = monitor(TensorDataset(inputs, LABELS))
    first.measure(network(), step=0)
    inputs[:] = INPUTS.flip(0)
    with pytest.warns(gm.GeomonitorWarning, match="the data of the probe set have changed since it was made"):
        first.measure(network(), step=1)
    assert math.isnan(first.history.series("penultimate", "dimension").values[-1])
    with pytest.raises(gm.InputError, match="content"):
        monitor(TensorDataset(inputs, LABELS)).load_state_dict(first.state_dict())


def test_the_side_file_has_what_the_first_measurement_found(tmp_path):
    runs = []
    for name, dtype in (("a", torch.float32), ("b", torch.bfloat16)):
        watcher = monitor()
        watcher.open_history(tmp_path / name / "geometry.csv")
        assert "dtypes" not in json.loads((tmp_path / name / "geometry.json").read_text())["protocol"]
        for step in range(2):
            watcher.measure(network(LessTheMean()).to(dtype), step=step)
        runs.append(json.loads((tmp_path / name / "geometry.json").read_text())["protocol"])
        assert runs[-1] == watcher.protocol
    assert runs[0]["batch_size"] == 40
    assert differences(*runs) == ["dtypes"]


def test_a_state_of_an_older_version_finds_its_identity_at_the_next_measurement():
    first = monitor()
    first.measure(network(), step=0)
    state = first.state_dict()
    for name in ("dtypes", "content"):
        del state["protocol"][name]
    second = monitor()
    second.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.measure(network(), step=1)
    assert second.protocol == first.protocol


def test_rounding_and_dependence():
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    for dtype, noise in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        features = {"fc": rows.to(dtype)}
        assert not depends_on_batch(features, {"fc": (rows[:5] * (1 + noise)).to(dtype)})
        assert depends_on_batch(features, {"fc": (rows[:5] * 1.2).to(dtype)})
    broken = rows.clone()
    broken[0] = math.nan
    assert not depends_on_batch({"fc": broken}, {"fc": rows[:5]})
    assert not depends_on_batch({"fc": torch.zeros(3, 2)}, {"fc": torch.zeros(2, 2)})
    assert depends_on_batch({"a": rows, "b": rows}, {"a": rows[:5], "b": rows[1:6]})


@pytest.mark.parametrize(("batch_size", "processes", "points"), [(128, 1, 40), (16, 1, 14), (128, 2, 20), (8, 3, 7)])
def test_points_at_once(batch_size, processes, points):
    probe = monitor().probe
    assert points_at_once(probe, batch_size, processes) == points
    sizes = [
        len(batch.ids)
        for rank in range(processes)
        for batch in probe.loader(batch_size, rank=rank, world_size=processes)
    ]
    assert max(sizes) == points


def test_an_identity_comes_back_from_a_protocol():
    for identity in (Identity({"fc": "float32"}, None), Identity({"fc": "float32"}, 8)):
        assert Identity.of(identity.as_protocol()) == identity
    assert Identity.of({"probe": "x"}) is None
