"""What the views of an item are: which part is kept, which share is masked, and on what the draws depend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import geomonitor as gm
from geomonitor.measure.dropout_views import dropping


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def viewed(dataset: Any, views: Any, samples: int = 20, **options: Any) -> Any:
    """Inputs of all views, item by item."""
    probe = gm.ProbeSet.from_unlabelled(dataset, samples=samples, views=views, **options)
    return probe.views.batch_of(torch.arange(len(probe.views))).inputs


def shifted(x: Tensor) -> Tensor:
    return x + torch.rand(())


def test_the_views_of_an_item_do_not_depend_on_its_place():
    data = TensorDataset(torch.arange(40.0)[:, None])
    whole = viewed(Subset(data, range(40)), shifted, samples=40).reshape(40, 10)
    part = viewed(Subset(data, range(10, 40)), shifted, samples=30).reshape(30, 10)
    by_item = {int(views.min()): views for views in whole}
    assert all(torch.equal(views, by_item[int(views.min())]) for views in part)
    assert len((whole % 1).unique()) > 390  # no item and no view draws what another one does
    other = viewed(Subset(data, range(40)), gm.Views(shifted, seed=1), samples=40)
    assert not torch.isclose(other.reshape(40, 10), whole, rtol=0, atol=1e-4).any(1).all()


def test_a_repeated_item_counts_once_and_items_are_drawn_by_seed():
    data = TensorDataset(torch.arange(30.0)[:, None])
    with pytest.raises(gm.InputError, match="30 different items"):
        gm.ProbeSet.from_unlabelled(Subset(data, [*range(30), *range(30)]), samples=40)
    first, second = (gm.ProbeSet.from_unlabelled(data, samples=10, seed=seed).indices.tolist() for seed in (0, 1))
    assert first != second
    assert first != list(range(10))


def test_points_of_the_training_set_are_refused_without_labels():
    data = TensorDataset(normal(30, 3))
    with pytest.raises(gm.InputError, match="in the training set"):
        gm.ProbeSet.from_unlabelled(data, samples=20, train=data)


def test_noise_is_a_twentieth_of_each_columns_deviation():
    x = normal(20, 3) * torch.tensor([1.0, 100.0, 0.0])
    probe = gm.ProbeSet.from_unlabelled(TensorDataset(x), samples=20, views=gm.Views("noise", count=60))
    whole = probe.batch_of(torch.arange(20)).inputs
    noise = probe.views.batch_of(torch.arange(1200)).inputs - whole.repeat_interleave(60, 0)
    scale = 0.05 * x.std(0, correction=0)
    np.testing.assert_allclose(noise.std(0), scale, rtol=0.1)
    assert (noise.mean(0).abs() <= 5 * scale / 1200**0.5).all()


def test_a_crop_keeps_half_to_all_of_the_area_anywhere_and_mirrors_every_other_one():
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    views = viewed(TensorDataset(torch.stack([rows, columns]).expand(20, -1, -1, -1).clone()), "crop")
    assert (views[:, 0, -1, 0] > views[:, 0, 0, 0]).all()  # never upside down
    mirrored = views[:, 1, 0, -1] < views[:, 1, 0, 0]
    assert 0.35 < mirrored.float().mean() < 0.65
    low, high = views.amin((2, 3)), views.amax((2, 3))
    area = (high - low).prod(1)
    assert 0.45 < area.min() < 0.56
    assert 0.9 < area.max() <= 1.001
    assert area.mean() == pytest.approx(0.75, abs=0.04)
    assert (low.amax(0) > 0.15).all()
    assert (high.amin(0) < 0.85).all()


SPECIAL, PAD, MASK = (101, 102), 0, 999


def tokens(lengths: tuple[int, ...] = (12, 20)) -> list[dict[str, Tensor]]:
    """Numbered tokens between two special ones, with padding of id 7."""
    items = []
    for i in range(20):
        length = lengths[i % len(lengths)]
        ids = torch.tensor([101, *range(200 + 50 * i, 200 + 50 * i + length - 2), 102, *[7] * (20 - length)])
        items.append({"input_ids": ids, "attention_mask": (torch.arange(20) < length).long()})
    return items


def test_special_tokens_and_padding_are_never_masked_and_items_stay():
    items = tokens()
    before = [item["input_ids"].clone() for item in items]
    found = viewed(items, gm.Views("mask", mask_token=MASK, special_tokens=SPECIAL))
    ids, mask = found["input_ids"], found["attention_mask"]
    assert (ids[:, 0] == 101).all()
    assert ((ids == 102).sum(1) == 1).all()
    assert (ids[mask == 0] == 7).all()
    assert (ids == MASK).sum(1).tolist() == [round(0.15 * (int(n) - 2)) for n in mask.sum(1)]
    assert all(torch.equal(item["input_ids"], old) for item, old in zip(items, before, strict=True))


def test_deleted_tokens_are_replaced_by_the_padding_of_the_item():
    found = viewed(tokens((12,)), gm.Views("mask", special_tokens=SPECIAL))
    ids, mask = found["input_ids"], found["attention_mask"]
    assert (mask.sum(1) == 12 - 2).all()  # 0.15 of ten, to the next whole number
    assert (ids[mask == 0] == 7).all()
    assert (ids[:, 9] == 102).all()


def test_a_window_is_half_to_nine_tenths_of_a_sequence_anywhere():
    found = viewed(tokens((20,)), "window")
    ids, length = found["input_ids"], found["attention_mask"].sum(1)
    assert (int(length.min()), int(length.max())) == (10, 18)
    starts = ids[:, 0]
    assert (starts == 101).any()
    assert (starts != 101).any()
    assert (ids == 102).any(1).any()


def test_a_window_of_a_series_is_seven_tenths_anywhere():
    series = torch.arange(20.0).expand(20, 1, 20).clone()
    found = viewed(TensorDataset(series), "window")
    assert found.shape == (200, 1, 14)
    assert (found.diff(dim=2) == 1).all()
    assert set(found[:, 0, 0].int().tolist()) == set(range(7))


@pytest.mark.parametrize("key", [None, 0, 2])
def test_a_label_stays_in_its_place(key: int | None):
    x, labels = normal(30, 3), torch.arange(30)
    tensors = {None: (x, labels), 0: (labels, x), 2: (x, 2 * x, labels)}[key]
    inputs = viewed(TensorDataset(*tensors), shifted if key != 2 else (lambda xs: [shifted(each) for each in xs]),
                    label_key=key)  # fmt: skip
    first = inputs[0] if key == 2 else inputs
    assert first.shape == (200, 3)
    assert first.is_floating_point()
    assert key != 2 or inputs[1].shape == (200, 3)


def test_only_views_of_tokens_have_tokens_in_the_protocol():
    assert gm.Views("noise").as_protocol() == {"kind": "noise", "count": 10, "seed": 0}
    mask = gm.Views("mask", mask_token=3, special_tokens=(1,)).as_protocol()
    assert mask == {"kind": "mask", "count": 10, "seed": 0, "mask_token": 3, "special_tokens": [1]}


def dropped(model: nn.Module, x: Tensor, ids: Tensor | None = None, samples: int = 20, first: int = 0) -> Tensor:
    data = TensorDataset(torch.arange(40.0)[:, None])
    views = gm.ProbeSet.from_unlabelled(Subset(data, range(first, 40)), samples=samples, views="dropout").views
    with dropping(model.eval(), views, torch.arange(200) if ids is None else ids), torch.no_grad():
        return model(x)


def test_dropout_drops_its_share_and_scales_the_rest():
    found = dropped(nn.Sequential(nn.Dropout(0.2)), torch.ones(200, 100))
    assert found.unique().tolist() == [0, 1.25]
    assert (found == 0).float().mean() == pytest.approx(0.2, abs=0.01)
    assert len(found.unique(dim=0)) == 200  # neither items nor views share what they lose
    channels = dropped(nn.Sequential(nn.Dropout2d(0.4)), torch.ones(200, 30, 2, 2)).flatten(2)
    assert (channels == channels[..., :1]).all()
    assert (channels == 0).float().mean() == pytest.approx(0.4, abs=0.03)


def test_two_dropout_layers_drop_other_units():
    found = dropped(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), torch.ones(200, 100))
    assert (found == 0).float().mean() == pytest.approx(0.75, abs=0.02)


def test_what_an_item_loses_depends_on_the_item_and_not_on_its_place():
    model, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(200, 50)
    data = TensorDataset(torch.arange(40.0)[:, None])
    both = []
    for first in (0, 5):
        subset = Subset(data, range(first, 40))
        probe = gm.ProbeSet.from_unlabelled(subset, samples=40 - first, views="dropout")
        items = (probe.indices + first).tolist()
        ids = torch.tensor([10 * items.index(i) + v for i in range(20, 40) for v in range(10)])
        with dropping(model.eval(), probe.views, ids):
            both.append(model(x))
    assert torch.equal(*both)


def test_points_that_do_not_come_first_cannot_be_dropped_by_item():
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x.transpose(0, 1))

    with pytest.raises(gm.InputError, match="points do not come first"):
        dropped(TimeFirst(), torch.ones(200, 5, 3))
    with pytest.raises(gm.InputError, match="p > 0"):
        dropped(nn.Sequential(nn.Dropout(0.0)), torch.ones(200, 5))
