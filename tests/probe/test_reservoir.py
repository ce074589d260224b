"""The choice of points: repeatable, uniform, the same in any order, split and number of parts."""

from __future__ import annotations

import torch

from geomonitor.probe.reservoir import (
    EMPTY,
    Reservoir,
    add_points,
    empty_reservoir,
    merge_reservoirs,
    points_and_labels,
    priority,
)


def fill(ids: torch.Tensor, labels: torch.Tensor, *, seed: int = 0, per_class: int = 5, batch: int = 10) -> Reservoir:
    """A reservoir of three classes whose points carry their id as their only feature."""
    features = ids[:, None].double()
    held = empty_reservoir(3, per_class, features)
    for i in range(0, len(ids), batch):
        part = slice(i, i + batch)
        held = add_points(held, features[part], labels[part], priority(ids[part], seed))
    return held


IDS = torch.arange(100)
LABELS = IDS % 3


def chosen(held: Reservoir) -> list[int]:
    return points_and_labels(held)[0].flatten().long().tolist()


def test_it_keeps_the_lowest_priorities_of_each_class():
    order = priority(IDS, 0)
    expected = [IDS[LABELS == c][order[LABELS == c].argsort()[:5]].tolist() for c in range(3)]
    held = fill(IDS, LABELS)
    assert chosen(held) == sum(expected, [])
    assert points_and_labels(held)[1].tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_order_split_and_parts_do_not_matter():
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    halves = [fill(IDS[r::2], LABELS[r::2]) for r in (0, 1)]
    assert chosen(fill(IDS, LABELS)) == chosen(fill(IDS[shuffled], LABELS[shuffled], batch=7))
    assert chosen(fill(IDS, LABELS)) == chosen(merge_reservoirs(halves))


def test_a_repeated_sample_counts_once():
    twice = torch.cat([IDS, IDS])
    assert chosen(fill(twice, twice % 3, per_class=50)) == chosen(fill(IDS, LABELS, per_class=50))


def test_few_points_leave_slots_empty():
    held = fill(IDS[:4], LABELS[:4])
    assert (held.priorities != EMPTY).sum(1).tolist() == [2, 1, 1]
    assert sorted(chosen(held)) == [0, 1, 2, 3]


def test_unknown_classes_are_left_out():
    assert all(i % 3 < 2 for i in chosen(fill(IDS, torch.where(LABELS == 2, -1, LABELS))))


def test_the_seed_changes_the_choice():
    assert chosen(fill(IDS, LABELS, seed=0)) != chosen(fill(IDS, LABELS, seed=1))


def test_priorities_are_uniform_and_distinct():
    values = priority(torch.arange(100_000), 3)
    assert values.unique().numel() == 100_000
    assert (values >= 0).all()
    assert (values < EMPTY).all()
    share = values.double() / EMPTY
    # 5 standard errors of a uniform mean and of each of ten bins
    assert abs(share.mean() - 0.5) < 5 * (1 / 12 / 1e5) ** 0.5
    assert (torch.histc(share, 10, 0, 1) - 1e4).abs().max() < 5 * (1e5 * 0.09) ** 0.5
