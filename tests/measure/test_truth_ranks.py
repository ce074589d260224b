"""A transfer probe beside a probe set and beside a validation probe: on two ranks what one process measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import geomonitor as gm
from geomonitor.markers.table import TRUTH
from tests.processes import in_processes

KNOWN, NEW = [0, 1, 2], [3, 4, 5, 6]
PER_CLASS = 17  # so that the ranks get unequal parts


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(280) % 7
    centers = torch.randn(7, 8, generator=generator)
    return TensorDataset((centers[labels] + torch.randn(280, 8, generator=generator)).double(), labels)


def known() -> Subset:
    return Subset(data(), [i for i in range(280) if i % 7 in KNOWN])


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).double()


def measured(rank: int, world_size: int, passive: bool) -> dict[str, tuple[float, float]]:
    """Values and errors of the changes at the second of two measurements."""
    whole = data()
    truth = gm.TransferProbe.from_dataset(whole, classes=NEW, per_class=PER_CLASS)
    if passive:
        probe = gm.ValidationProbe(classes=KNOWN, per_class=PER_CLASS)
    else:
        probe = gm.ProbeSet.from_dataset(whole, classes=KNOWN, per_class=PER_CLASS)
    network = model()
    monitor = gm.GeometryMonitor(
        probe, truth=truth, markers=["dimension", "participation_ratio"], geometry={"directions": 20}, on_error="raise"
    )
    for step in (1, 2):
        with torch.no_grad():
            network[0].weight += 0.02
        validation = None
        if passive:
            validation = monitor.validation_pass(network, dataset_length=len(known()))
            for batch in DataLoader(Subset(known(), range(rank, len(known()), world_size)), batch_size=16):
                with validation.batch(batch), torch.no_grad():
                    network(batch[0])
        monitor.measure(network, step=step, validation=validation)
    return {
        r.marker: (r.value, r.change_error)
        for r in monitor.history
        if r.step == 2 and r.layer and r.marker in (*TRUTH, "dimension", "participation_ratio")
    }


def both(rank: int) -> list[dict[str, tuple[float, float]]]:
    return [measured(rank, 2, passive) for passive in (False, True)]


@pytest.fixture(scope="module")
def ranks():
    return in_processes(both)


@pytest.mark.parametrize("passive", [False, True], ids=["probe set", "validation probe"])
def test_two_ranks_measure_what_one_process_measures(ranks, passive):
    first, second = (rank[passive] for rank in ranks)
    alone = measured(0, 1, passive)
    assert set(TRUTH) <= set(alone)
    assert str(first) == str(second)  # NaN is not equal to itself
    for name, values in alone.items():
        np.testing.assert_allclose(first[name], values, rtol=1e-8, err_msg=name)
    assert all(0.2 < alone[name][0] <= 1 and math.isfinite(alone[name][1]) for name in TRUTH)


def test_it_does_not_matter_to_transfer_where_the_known_points_come_from():
    beside_probe_set, beside_validation = measured(0, 1, False), measured(0, 1, True)
    for name in TRUTH:
        if name.startswith("transfer"):  # knn_accuracy is of the known points
            assert beside_probe_set[name] == beside_validation[name]
