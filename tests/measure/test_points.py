"""The buffer of points: any batches, order and number of processes give the same, and a point counts once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import geomonitor as gm
from geomonitor.measure.points import GatheredPoints, PointBuffer
from tests.processes import in_processes

POINTS, CLASSES = 90, 3
CPU = torch.device("cpu")


def data() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = {
        "early": torch.randn(POINTS, 4, generator=generator),
        "late": torch.randn(POINTS, 7, generator=generator).bfloat16(),
    }
    return rows, torch.arange(POINTS) % CLASSES, 10 * torch.arange(POINTS)


def gathered(batches: list[Tensor]) -> GatheredPoints:
    rows, classes, ids = data()
    buffer = PointBuffer(CPU)
    for part in batches:
        buffer.add({name: values[part] for name, values in rows.items()}, classes=classes[part], ids=ids[part])
    return buffer.gather()


def same(one: GatheredPoints, other: GatheredPoints) -> bool:
    return torch.equal(one.classes, other.classes) and all(
        torch.equal(one.rows[name], other.rows[name]) for name in data()[0]
    )


def test_points_come_class_by_class_and_none_is_lost():
    rows, classes, _ = data()
    points = gathered([torch.arange(POINTS)])
    assert torch.equal(points.classes, classes.sort().values)
    assert points.rows["late"].dtype == torch.bfloat16
    for c in range(CLASSES):
        own = rows["early"][classes == c]
        found = points.rows["early"][points.classes == c]
        assert torch.equal(found[found[:, 0].argsort()], own[own[:, 0].argsort()])


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_and_their_order_do_not_matter(size):
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(size))
    assert same(gathered(list(order.split(size))), gathered([torch.arange(POINTS)]))


def test_a_point_that_comes_twice_counts_once():
    everyone = torch.arange(POINTS)
    assert same(gathered([everyone, everyone[:20], everyone[5:9]]), gathered([everyone]))


def test_rows_are_copied():
    buffer, values = PointBuffer(CPU), torch.ones(2, 3)
    buffer.add({"layer": values}, classes=torch.tensor([0, 1]), ids=torch.arange(2))
    values.zero_()  # as a layer in place, or a captured graph, does at the next batch
    assert buffer.gather().rows["layer"].sum() == 6


@pytest.mark.parametrize("rows", [torch.ones(2, 4), torch.ones(2), torch.ones(2, 3, dtype=torch.complex64)])
def test_rows_that_would_not_join_are_refused_before_the_processes_meet(rows):
    buffer = PointBuffer(CPU)
    buffer.add({"layer": torch.ones(2, 3)}, classes=torch.tensor([0, 1]), ids=torch.arange(2))
    with pytest.raises(gm.InputError):
        buffer.add({"layer": rows}, classes=torch.tensor([0, 1]), ids=torch.arange(2))


def test_no_points_at_all():
    points = gathered([])
    assert points.rows == {}
    assert len(points.classes) == 0


def _rank_part(rank: int, case: str) -> GatheredPoints:
    everyone = torch.arange(POINTS)
    parts = {
        "even": everyone[rank::2],
        "uneven": everyone[:37] if rank else everyone[37:],
        "empty rank": everyone if rank else everyone[:0],
        "padded": torch.cat([everyone[rank::2], everyone[:3]]),
    }
    return gathered(list(parts[case].split(16)) if len(parts[case]) else [])


@pytest.mark.parametrize("case", ["even", "uneven", "empty rank", "padded"])
def test_two_processes_gather_what_one_has(case):
    whole = gathered([torch.arange(POINTS)])
    assert all(same(found, whole) for found in in_processes(_rank_part, case))
