"""A probe point that the model is trained on must be found, and no other must be refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from geomonitor.errors import InputError
from geomonitor.probe.held_out import origins, overlap

NUMBERS = itertools.count()


class Images(Dataset[Any]):
    """Like torchvision's: the same files may be opened twice, with different transforms."""

    def __init__(self, data: Any = None, samples: Any = None) -> None:
        if data is not None:
            self.data = data
        if samples is not None:
            self.samples = samples
        self.number = next(NUMBERS)
        self.length = len(data if data is not None else samples or range(10))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return (self.number, index), 0


class Wrapper(Images):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.length = len(dataset)


def test_rows_lead_to_the_bottom() -> None:
    base, other = Images(), Images()
    found = origins(ConcatDataset([Subset(Subset(base, [9, 8, 7]), [2, 0]), Wrapper(Subset(other, [4]))]))
    assert found.sources == [base, other]
    assert found.rows.tolist() == [[0, 7], [0, 9], [1, 4]]


BASE = Images()
PROBE = Subset(BASE, [6, 7, 8, 9])


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (BASE, [0, 1, 2, 3]),
        (Subset(BASE, [0, 1, 2]), []),
        (Subset(BASE, [9, 0, 7]), [1, 3]),
        (Subset(Subset(BASE, [5, 6, 7]), [1]), [0]),
        (Wrapper(Subset(BASE, [8])), [2]),
        (ConcatDataset([Images(), Subset(BASE, [8])]), [2]),
        (DataLoader(Subset(BASE, [8])), [2]),
        (DataLoader(BASE, sampler=SubsetRandomSampler([8, 1])), [2]),
        (Images(), []),
        ([8, 0], [2]),
        ([], []),
        (range(7), [0]),
        ({8}, [2]),
        (torch.tensor([8, 0]), [2]),
        (np.array([8, 0]), [2]),
        ([np.int64(8)], [2]),
    ],
)
def test_overlap_by_index(train: Any, expected: list[int]) -> None:
    assert overlap(origins(PROBE), train).tolist() == expected


@pytest.mark.parametrize(
    ("make", "differ"),
    [
        (
            lambda: Images(data=np.arange(40).reshape(10, 4)),
            lambda: Images(data=np.arange(1, 41).reshape(10, 4)),
        ),
        (lambda: Images(data=torch.arange(10)), lambda: Images(data=torch.arange(1, 11))),
        (
            lambda: Images(samples=[(f"{i}.png", 0) for i in range(10)]),
            lambda: Images(samples=[(f"val{i}.png", 0) for i in range(10)]),
        ),
    ],
    ids=["array", "tensor", "files"],
)
def test_the_same_files_opened_twice(make: Any, differ: Any) -> None:
    assert overlap(origins(Subset(make(), [2, 5])), Subset(make(), [5, 6])).tolist() == [1]
    assert overlap(origins(Subset(make(), [2, 5])), Subset(differ(), [5, 6])).tolist() == []


def test_tensor_datasets_over_one_tensor() -> None:
    x, y = torch.randn(20, 3), torch.arange(20)
    train, held_out = TensorDataset(x[:12], y[:12]), TensorDataset(x[10:], y[10:])
    assert overlap(origins(held_out), train).tolist() == [0, 1]
    assert overlap(origins(TensorDataset(x[12:], y[12:])), train).tolist() == []
    assert overlap(origins(TensorDataset(x[::4], y[::4])), Subset(train, [4, 5])).tolist() == [1]
    assert overlap(origins(TensorDataset(x.clone(), y)), train).tolist() == list(range(12))
    assert overlap(origins(TensorDataset(x + 1, y)), train).tolist() == []


def test_indices_need_one_dataset_that_they_point_into() -> None:
    with pytest.raises(InputError, match="give the training dataset itself"):
        overlap(origins(ConcatDataset([Images(), Images()])), [1, 2])


@pytest.mark.parametrize("train", [torch.ones(10, dtype=torch.bool), np.zeros((2, 2), int), torch.rand(3)])
def test_arrays_that_are_not_indices(train: Any) -> None:
    with pytest.raises(InputError, match="expected indices"):
        overlap(origins(PROBE), train)


def test_a_stream_cannot_be_compared() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self):
            yield 0, 1

    with pytest.raises(InputError, match="map-style"):
        overlap(origins(PROBE), Stream())


class Base(Dataset[Any]):
    """Keeps its items to itself."""

    def __init__(self, first: int, length: int = 10, transform: Any = None) -> None:
        self.first, self.length, self.transform = first, length, transform

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        value = torch.tensor([float(self.first + index)])
        return value if self.transform is None else self.transform(value), index % 2


class Other(Base):
    pass


class Holder(Dataset[Any]):
    def __init__(self, **held: Any) -> None:
        vars(self).update(held)
        self.length = len(next(iter(held.values())))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return next(iter(vars(self).values()))[index]


ITEMS = [(torch.full((2,), float(i)), i % 2) for i in range(10)]


@pytest.mark.parametrize("name", ["inner", "base", "_ds"])
def test_a_wrapper_of_any_name(name: str) -> None:
    base = Base(0)
    train = Holder(**{name: Subset(base, [4, 5])})
    assert overlap(origins(Subset(base, [5, 6]), search=True), train).tolist() == [0]
    assert overlap(origins(Subset(Holder(**{name: base}), [5, 6]), search=True), Subset(base, [6])).tolist() == [1]


@pytest.mark.parametrize(
    ("probe", "train", "expected"),
    [
        (ITEMS, list(ITEMS), list(range(10))),
        (ITEMS, [(x.clone(), y) for x, y in ITEMS[3:5]], [3, 4]),
        (ITEMS, [(x + 100, y) for x, y in ITEMS], []),
        (Base(0), Base(8), [8, 9]),
        (Base(0), Base(10), []),
        (Base(0), Base(5, length=2), [5, 6]),
        (Images(data=np.arange(12).reshape(6, 2)), Images(data=np.arange(8).reshape(4, 2)), [0, 1, 2, 3]),
        (TensorDataset(torch.arange(6.0).bfloat16()), TensorDataset(torch.arange(2.0).bfloat16()), [0, 1]),
        (Images(samples=["a/1.png", "a/2.png"]), Other(0, 1), None),
        (Images(samples=[("a/1.png", 0), ("a/2.png", 1)]), Images(samples=[("b/../a/2.png", 1)]), [1]),
    ],
)
def test_items_of_other_objects_are_known_by_their_content(probe: Any, train: Any, expected: list[int] | None) -> None:
    if expected is None:
        with pytest.raises(InputError, match="cannot be checked"):
            overlap(origins(probe), train)
    else:
        assert overlap(origins(probe), train).tolist() == expected


@pytest.mark.parametrize(
    "train",
    [
        Other(0),
        Base(0, transform=torch.neg),
        TensorDataset(torch.zeros(10, 1)),
        ["a"],
        Holder(one=Base(0), two=Base(0)),
        Holder(rows=list(range(20))),
        ConcatDataset([Base(0), Other(0)]),
    ],
    ids=["class", "transform", "tensors", "strings", "two datasets", "no dataset", "one of two"],
)
def test_what_cannot_be_compared_is_refused(train: Any) -> None:
    with pytest.raises(InputError, match=r"cannot be checked: train is a .* leave train= out if you know"):
        overlap(origins(Base(0), search=True), train)


def test_items_that_are_random_or_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = [Base(i, transform=torch.rand_like) for i in (0, 50)]
    with pytest.raises(InputError, match="cannot be checked"):
        overlap(origins(noisy[0]), noisy[1])
    monkeypatch.setattr("geomonitor.probe.held_out.MOST_READ", 9)
    with pytest.raises(InputError, match="cannot be checked: train is a Base of 10 items"):
        overlap(origins(Base(0)), Base(50))


@pytest.mark.parametrize("train", ["train", b"train", {"train": BASE}, {0: 1}])
def test_what_is_no_dataset(train: Any) -> None:
    with pytest.raises(InputError, match="train must be one dataset"):
        overlap(origins(PROBE), train)


@pytest.mark.parametrize("train", [[-1], [10], [0, 10**9], torch.tensor([-3]), {11}, range(-2, 3)])
def test_indices_out_of_range(train: Any) -> None:
    with pytest.raises(InputError, match="indices in train from 0 to 9"):
        overlap(origins(PROBE), train)


@pytest.mark.parametrize("train", [(i for i in range(3)), 7, object()])
def test_what_has_no_items(train: Any) -> None:
    with pytest.raises(InputError, match="map-style"):
        overlap(origins(PROBE), train)
