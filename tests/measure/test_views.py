"""Probe sets without labels: what is measured, what is refused, and that views are always the same ones."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import geomonitor as gm
from geomonitor.markers.instances import lidar
from geomonitor.measure.views import VIEW_MARKERS
from tests.processes import in_processes

VIEW_KINDS: dict[str, Any] = {"noise": "noise", "dropout": "dropout"}


def jittered(x: torch.Tensor) -> torch.Tensor:
    """Draws from all three streams."""
    return x + 0.1 * torch.randn_like(x) + 0.1 * random.random() + 0.1 * float(np.random.rand())


def data() -> TensorDataset:
    return TensorDataset(torch.randn(120, 10, generator=torch.Generator().manual_seed(0)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def values(probe: gm.ProbeSet, **options: Any) -> dict[str, float]:
    monitor = gm.GeometryMonitor(probe, geometry={"directions": 20}, on_error="raise", **options)
    return {r.marker: r.value for r in monitor.measure(network().train(), step=1) if r.marker in monitor.markers}


def test_without_views_the_default_is_what_needs_no_label():
    found = values(gm.ProbeSet.from_unlabelled(data(), samples=40))
    assert set(found) == {"participation_ratio", "numerical_rank", "mean_norm", "dead_units"}
    assert all(map(math.isfinite, found.values()))
    every = values(gm.ProbeSet.from_unlabelled(data(), samples=40), markers="all")
    assert {"rankme", "uniformity", "intrinsic_dimension", "mean_cosine", "spectral_decay"} <= set(every)
    assert not {"accuracy", "nc1", "dimension", "within_class_distance", "participation_ratio_per_class"} & set(every)


@pytest.mark.parametrize("kind", [jittered, "noise", "dropout"])
def test_with_views_each_item_is_a_manifold(kind):
    probe = gm.ProbeSet.from_unlabelled(data(), samples=30, views=gm.Views(kind, count=6))
    stream = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    network_made = network()
    stream = (torch.get_rng_state(), *stream[1:])
    monitor = gm.GeometryMonitor(probe, geometry={"directions": 20}, on_error="raise")
    monitor.measure(network_made.train(), step=1)
    assert torch.equal(stream[0], torch.get_rng_state())
    found = values(probe)
    assert set(VIEW_MARKERS) <= set(found)
    assert all(map(math.isfinite, found.values()))
    assert stream[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    again = values(gm.ProbeSet.from_unlabelled(data(), samples=30, views=gm.Views(kind, count=6)), batch_size=7)
    assert again == pytest.approx(found, rel=1e-4)
    other = values(gm.ProbeSet.from_unlabelled(data(), samples=30, views=gm.Views(kind, count=6, seed=1)))
    assert other["lidar"] != pytest.approx(found["lidar"], rel=1e-3)
    assert other["participation_ratio"] == found["participation_ratio"]


def test_the_group_of_language_models_is_measured_and_has_no_token_entropy_where_there_are_no_tokens():
    probe = gm.ProbeSet.from_unlabelled(data(), samples=40)
    with pytest.raises(gm.InputError, match="panel=None for curves without verdicts"):
        gm.GeometryMonitor(probe, markers="lm")
    with pytest.warns(gm.GeomonitorWarning, match="gives no tokens"):
        found = values(probe, markers="lm", panel=None)
    assert math.isnan(found.pop("token_entropy"))
    assert set(found) == {"mean_cosine", "centred_mean_cosine", "top_channel_share", "rankme", "intrinsic_dimension"}
    assert all(map(math.isfinite, found.values()))


def test_lidar_is_the_function_of_the_views():
    probe = gm.ProbeSet.from_unlabelled(data(), samples=30, views=jittered)
    inputs = torch.cat([batch.inputs for batch in probe.views.loader(7)])
    labels = torch.cat([batch.labels for batch in probe.views.loader(7)])
    with torch.no_grad():
        features = network().eval()[:5](inputs)
    assert values(probe, markers=["lidar"], panel=None)["lidar"] == pytest.approx(
        lidar(features, labels).value.item(), rel=1e-5
    )


def test_views_are_part_of_the_identity():
    def probe(views: Any, dataset: Any = None) -> gm.ProbeSet:
        return gm.ProbeSet.from_unlabelled(data() if dataset is None else dataset, samples=20, views=views)

    prints = [
        probe(v).fingerprint
        for v in (None, jittered, "noise", gm.Views("noise", 5), gm.Views("noise", seed=1), "dropout")
    ]
    assert len(set(prints)) == len(prints)
    assert probe("noise").fingerprint == probe(gm.Views("noise")).fingerprint
    reordered = Subset(data(), list(range(120)))
    assert probe(jittered, reordered).views.content == probe(jittered).views.content
    assert probe(jittered).views.content != probe(lambda x: 2 * jittered(x)).views.content
    protocol = gm.GeometryMonitor(probe(jittered)).protocol
    assert protocol["views"] == {"kind": "jittered", "count": 10, "seed": 0}


def test_a_transform_with_a_generator_of_its_own_is_refused():
    own = np.random.default_rng(0)
    with pytest.raises(gm.InputError, match="other ones each time"):
        gm.ProbeSet.from_unlabelled(data(), samples=20, views=lambda x: x + float(own.normal()))


def test_a_run_goes_on_with_the_same_views_and_with_no_others():
    def monitor(views: Any) -> gm.GeometryMonitor:
        return gm.GeometryMonitor(gm.ProbeSet.from_unlabelled(data(), samples=20, views=views), on_error="raise")

    first, model = monitor(jittered), network()
    before = {r.marker: r.value for r in first.measure(model, step=1)}
    second = monitor(jittered)
    second.load_state_dict(first.state_dict())
    after = {r.marker: r.value for r in second.measure(model, step=2)}
    assert {m: after[m] for m in VIEW_MARKERS} == {m: before[m] for m in VIEW_MARKERS}
    assert second.history.measurements == 2
    with pytest.raises(gm.InputError, match="views"):
        monitor(gm.Views(jittered, seed=1)).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("markers", "views", "message"),
    [
        (["accuracy", "rankme"], None, "accuracy: need labels"),
        (["nc1"], "noise", "nc1: need labels"),
        (["lidar"], None, "lidar: need views"),
        ("ssl", None, "alignment.*need views"),
    ],
)
def test_what_cannot_be_measured_is_refused(markers, views, message):
    probe = gm.ProbeSet.from_unlabelled(data(), samples=20, views=views)
    with pytest.raises(gm.InputError, match=message):
        gm.GeometryMonitor(probe, markers=markers)


def test_a_labelled_probe_set_has_no_views():
    labelled = TensorDataset(data().tensors[0], torch.arange(120) % 4)
    with pytest.raises(gm.InputError, match="need views"):
        gm.GeometryMonitor(gm.ProbeSet.from_dataset(labelled, per_class=10), markers=["lidar"])
    dropped = gm.ProbeSet.from_unlabelled(labelled, samples=20)
    assert next(dropped.loader(5)).inputs.shape == (5, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 500}, "120 different items"),
        ({"views": "blur"}, "crop"),
        ({"views": 3}, "views takes"),
        ({"views": "crop"}, r"float images \(C, H, W\)"),
        ({"views": "mask"}, r"token ids \(L,\)"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(gm.InputError, match=message):
        gm.ProbeSet.from_unlabelled(data(), **{"samples": 20, **options})


def test_dropout_views_of_a_model_without_dropout():
    probe = gm.ProbeSet.from_unlabelled(data(), samples=20, views="dropout")
    monitor = gm.GeometryMonitor(probe, layers="0")
    with pytest.warns(gm.GeomonitorWarning, match="nn.Dropout layers"):
        records = monitor.measure(nn.Sequential(nn.Linear(10, 8)), step=1)
    found = {r.marker: r.value for r in records}
    assert math.isnan(found["lidar"])
    assert math.isfinite(found["numerical_rank"])


TOKENS = [
    {"input_ids": torch.arange(1, 21) + i, "attention_mask": (torch.arange(20) < 15 + i % 6).long()} for i in range(30)
]


def test_views_of_tokens():
    def batch(views: gm.Views, dataset: Any = TOKENS) -> Any:
        probe = gm.ProbeSet.from_unlabelled(dataset, samples=20, views=views)
        return next(probe.views.loader(200)).inputs, next(probe.loader(20)).inputs

    masked, _ = batch(gm.Views("mask", mask_token=999))
    assert (masked["input_ids"] == 999).sum(1).tolist() == [
        max(1, round(0.15 * int(n))) for n in masked["attention_mask"].sum(1)
    ]
    special = tuple(range(1, 30))
    masked, _ = batch(gm.Views("mask", mask_token=999, special_tokens=special))
    assert (masked["input_ids"] == 999).any()
    deleted, whole = batch(gm.Views("mask"))
    assert deleted["input_ids"].shape == (200, 20)
    assert deleted["attention_mask"].sum() < 10 * whole["attention_mask"].sum()
    window, whole = batch(gm.Views("window"))
    share = window["attention_mask"].sum() / (10 * whole["attention_mask"].sum())
    assert 0.6 < share < 0.8
    kept = window["input_ids"][0][window["attention_mask"][0].bool()]
    assert (kept.diff() == 1).all()
    shorter, _ = batch(gm.Views("mask"), [item["input_ids"] for item in TOKENS])
    assert shorter.shape == (200, 17)


def test_views_of_images():
    images = torch.rand(25, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    probe = gm.ProbeSet.from_unlabelled(TensorDataset(images, torch.arange(25)), samples=20, views="crop")
    batch = next(probe.views.loader(200))
    assert batch.inputs.shape == (200, 1, 32, 32)
    assert len(batch.inputs.flatten(1).unique(dim=0)) > 190


def in_one_process(rank: int) -> dict[str, Any]:
    del rank
    kinds = {"function": jittered, **VIEW_KINDS}
    probes = {k: gm.ProbeSet.from_unlabelled(data(), samples=30, views=v) for k, v in kinds.items()}
    return {kind: values(probe) for kind, probe in probes.items()}


def test_two_processes_measure_what_one_does():
    alone = in_one_process(0)
    for found in in_processes(in_one_process):
        for kind, expected in alone.items():
            assert found[kind] == pytest.approx(expected, rel=1e-4), kind
