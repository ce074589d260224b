"""A probe point that the model is trained on must be found, and no other must be refused."""

from __future__ import annotations

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


class Images(Dataset[Any]):
    """Like torchvision's: the same files may be opened twice, with different transforms."""

    def __init__(self, data: Any = None, samples: Any = None) -> None:
        if data is not None:
            self.data = data
        if samples is not None:
            self.samples = samples
        self.length = len(data if data is not None else samples or range(10))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return index, 0


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
    assert overlap(origins(TensorDataset(x.clone(), y)), train).tolist() == []


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
