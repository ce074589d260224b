"""A transfer probe is measured beside the markers, with paired errors; it judges nothing and breaks nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import geomonitor as gm
from geomonitor.alarms.judge import replay
from geomonitor.markers.table import TRUTH
from geomonitor.markers.transfer import neighbors_are_right, ridge_is_right
from tests.options import grouped


def data(first: int = 0, classes: int = 6, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = first + torch.arange(240) % classes
    centers = torch.randn(first + classes, 8, generator=torch.Generator().manual_seed(9))
    return TensorDataset(centers[labels] + torch.randn(240, 8, generator=generator), labels)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def monitor(**options) -> gm.GeometryMonitor:
    probe = gm.ProbeSet.from_dataset(data(), classes=[0, 1, 2], per_class=20)
    truth = gm.TransferProbe.from_dataset(data(3, 4, seed=1), per_class=20)
    defaults = {"truth": truth, "markers": ["dimension", "participation_ratio"], "on_error": "raise", "directions": 20}
    return gm.GeometryMonitor(probe, **grouped(**defaults | options))


def test_it_is_measured_with_the_geometry_with_standard_and_paired_errors():
    watched, network = monitor(), model()
    watched.measure(network, step=1)
    with torch.no_grad():
        network[0].weight += 0.02
    records = {r.marker: r for r in watched.measure(network, step=2) if r.layer}
    assert set(TRUTH) <= set(records)
    for name in TRUTH:
        assert 0.2 < records[name].value <= 1
        assert 0 <= records[name].change_error < records[name].standard_error
    points = torch.stack([watched.truth.probe.dataset[i][0] for i in watched.truth.probe.indices])
    features = network[:2](points).detach().double()
    assert records["transfer_accuracy"].value == pytest.approx(
        float(ridge_is_right(features, watched.truth.probe.labels - 3).mean()), abs=0.1
    )  # the folds of the monitor follow the ids of the points
    known = torch.stack([watched.probe.dataset[i][0] for i in watched.probe.indices])
    own = neighbors_are_right(network[:2](known).detach(), watched.probe.labels)
    assert records["knn_accuracy"].value == float(own.mean())  # neighbours do not depend on an order


def test_the_geometry_is_the_same_with_and_without_it():
    kept = ("dimension", "participation_ratio")
    values = [
        {r.marker: r.value for r in monitor(**options).measure(model(), step=1) if r.marker in kept}
        for options in ({}, {"truth": None})
    ]
    assert values[0] == values[1]
    assert len(values[0]) == 2


def test_no_panel_judges_it():
    with pytest.raises(gm.InputError, match="transfer_accuracy"):
        monitor(panel=gm.Panel(("transfer_accuracy",), gm.DropFromReference()))
    watched = monitor()
    assert not set(TRUTH) & set(watched.panel.watch)
    for step in range(12):
        records = [r for r in watched.measure(model(), step=step) if r.layer]
        fallen = [r._replace(value=0.9 if step < 8 else 0.1) for r in records if r.marker in TRUTH]
        watched.history.append(fallen)
    assert not replay(watched.history, "penultimate", gm.Panel())


def test_a_failure_is_nan_and_a_warning_and_the_geometry_stays():
    calls = []

    def forward(network, inputs):
        calls.append(len(inputs))
        if len(calls) > 2:  # a few points to find the layer, the probe set, then the truth
            raise RuntimeError("no room")
        return network(inputs)

    with pytest.warns(gm.GeomonitorWarning, match="transfer cannot be measured.*no room"):
        records = {r.marker: r.value for r in monitor(forward=forward).measure(model(), step=1) if r.layer}
    assert math.isnan(records["transfer_accuracy"])
    assert math.isfinite(records["dimension"])


def test_nonfinite_features_of_new_classes():
    truth = data(3, 4)
    truth.tensors[0][:3] = math.inf
    probe = gm.TransferProbe.from_dataset(truth, per_class=30)
    with pytest.warns(gm.GeomonitorWarning, match="NaN or infinite"):
        records = {r.marker: r.value for r in monitor(truth=probe).measure(model(), step=1) if r.layer}
    assert math.isfinite(records["transfer_accuracy"])
    assert records["nonfinite_rows"] == 0  # of the probe set


def test_the_protocol_and_the_state_know_it():
    first, network = monitor(), model()
    first.measure(network, step=1)
    second = monitor()
    second.load_state_dict(first.state_dict())
    error = {r.marker: r.change_error for r in second.measure(network, step=2) if r.layer}["transfer_accuracy"]
    assert error == 0
    assert "truth" not in monitor(truth=None).protocol
    with pytest.raises(gm.InputError, match="truth"):
        monitor(truth=gm.TransferProbe.from_dataset(data(3, 4), per_class=15)).load_state_dict(first.state_dict())


@pytest.mark.parametrize("shared", ["classes", "points"])
def test_known_classes_and_points_are_refused(shared):
    whole = data(0, 6)
    probe = gm.ProbeSet.from_dataset(whole, classes=[0, 1, 2], per_class=20)
    if shared == "classes":
        truth = gm.TransferProbe.from_dataset(Subset(whole, range(240)), classes=[2, 3], per_class=20)
    else:
        again = TensorDataset(whole.tensors[0], whole.tensors[1] + 10)  # relabelled
        truth = gm.TransferProbe.from_dataset(Subset(again, range(240)), per_class=20)
    with pytest.raises(gm.InputError, match=f"share .*{'classes' if shared == 'classes' else 'of one dataset'}"):
        gm.GeometryMonitor(probe, truth=truth)
    new = gm.TransferProbe.from_dataset(whole, classes=[3, 4, 5], per_class=20)
    gm.GeometryMonitor(probe, truth=new)
    relabelled = TensorDataset(data(0, 3, seed=5).tensors[0].clone(), torch.arange(240) % 3)
    gm.GeometryMonitor(probe, truth=gm.TransferProbe.from_dataset(relabelled, per_class=20))


class Rows(torch.utils.data.Dataset):
    """A dataset of a user's own, which nothing is known about."""

    def __init__(self, held: TensorDataset) -> None:
        self.rows = [held[index] for index in range(240)]

    def __len__(self) -> int:
        return 240

    def __getitem__(self, index: int):
        return self.rows[index]


class OtherRows(Rows):
    pass


@pytest.mark.parametrize("kind", [TensorDataset, OtherRows])
def test_new_classes_may_be_in_a_dataset_of_any_kind(kind):
    new = data(3, 4, seed=1)
    truth = gm.TransferProbe.from_dataset(new if kind is TensorDataset else kind(new), per_class=20)
    gm.GeometryMonitor(gm.ProbeSet.from_dataset(Rows(data()), classes=[0, 1, 2], per_class=20), truth=truth)


@pytest.mark.parametrize("when", ["in the run", "on resume"])
def test_new_points_that_change_underneath(when):
    held = data(3, 4, seed=1)
    first = monitor(truth=gm.TransferProbe.from_dataset(held, per_class=20))
    first.measure(model(), step=1)
    held.tensors[0].mul_(1.5)
    if when == "in the run":
        with pytest.raises(gm.MeasurementError, match="have changed since it was made"):
            first.measure(model(), step=2)
    else:
        again = monitor(truth=gm.TransferProbe.from_dataset(held, per_class=20))
        with pytest.raises(gm.InputError, match="truth content"):
            again.load_state_dict(first.state_dict())


@pytest.mark.parametrize("truth", [3, "new", data()])
def test_what_is_no_transfer_probe_is_refused(truth):
    with pytest.raises(gm.InputError, match=r"TransferProbe.from_dataset\(new_class_dataset\)"):
        monitor(truth=truth)


def test_too_few_points_are_refused():
    with pytest.raises(gm.InputError, match="10 points of each class"):
        gm.TransferProbe.from_dataset(data(), per_class=9)
