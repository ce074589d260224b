"""Labels must be right, and must not cost a pass over the images where the dataset already knows them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from geomonitor.errors import InputError
from geomonitor.probe.datasets import labels_of, map_style
from geomonitor.probe.label_key import split_label
from tests.loads import Loads

LABELS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


class Counted(Dataset[Any]):
    """Ten items that count how often they are loaded."""

    def __init__(self, item: Any = lambda i: (torch.full((2,), float(i)), LABELS[i]), **stored: Any) -> None:
        self.item = item
        self.loaded = Loads()
        for name, value in stored.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> Any:
        self.loaded.append(index)
        return self.item(index)


class Wrapper(Dataset[Any]):
    def __init__(self, dataset: Any, label: Any = lambda y: y) -> None:
        self.dataset = dataset
        self.label = label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        x, y = self.dataset[index]
        return x, self.label(y)


class Columns:
    """The part of a Hugging Face dataset that matters here."""

    def __init__(self, label: str = "label") -> None:
        self.loaded = Loads()
        self.label = label
        self.column_names = ["text", label]

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return {"text": ["a"] * len(LABELS), self.label: LABELS}[key]
        self.loaded.append(key)
        return {"text": "a", self.label: LABELS[key]}


class TestStoredLabels:
    @pytest.mark.parametrize("name", ["targets", "labels"])
    @pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda y: torch.tensor(y)[:, None]])
    def test_attributes(self, name: str, kind: Any) -> None:
        big = [*range(60)] * 5
        dataset = Counted(lambda i: (0, big[i]))
        dataset.__class__ = type("Big", (Counted,), {"__len__": lambda self: 300})
        setattr(dataset, name, kind(big))
        assert labels_of(dataset).tolist() == big
        assert len(dataset.loaded) <= 32  # a few are compared, not all 300

    def test_through_subsets_only_items_of_the_subset_are_touched(self) -> None:
        dataset = Counted(targets=LABELS)
        nested = Subset(Subset(dataset, [9, 7, 3, 1, 0]), [3, 4, 0, 2])
        assert labels_of(nested).tolist() == [1, 3, 3, 1]
        assert sorted(dataset.loaded) == [0, 1]  # one of each class, to compare

    def test_tensors(self) -> None:
        x, y = torch.zeros(10, 2), torch.tensor(LABELS)
        assert labels_of(TensorDataset(x, y)).tolist() == LABELS
        assert labels_of(TensorDataset(x, x, y), label_key=2).tolist() == LABELS
        assert labels_of(TensorDataset(x, y, x), label_key=-2).tolist() == LABELS

    @pytest.mark.parametrize(("label", "key"), [("label", None), ("coarse", "coarse")])
    def test_columns(self, label: str, key: str | None) -> None:
        dataset = Columns(label)
        assert labels_of(dataset, key).tolist() == LABELS
        assert len(dataset.loaded) == len(set(LABELS))

    def test_concatenated(self) -> None:
        dataset = ConcatDataset([Counted(targets=LABELS), Subset(Counted(labels=LABELS), [0, 5])])
        assert labels_of(dataset).tolist() == [*LABELS, 3, 9]

    def test_target_transform(self) -> None:
        dataset = Counted(lambda i: (0, LABELS[i] % 2), targets=LABELS, target_transform=lambda y: y % 2)
        assert labels_of(dataset).tolist() == [label % 2 for label in LABELS]
        assert len(dataset.loaded) == 2

    def test_a_wrapper_that_renumbers_is_believed_more_than_what_it_wraps(self) -> None:
        dataset = Counted(targets=LABELS)
        assert labels_of(Wrapper(dataset)).tolist() == LABELS
        assert len(dataset.loaded) == len(set(LABELS))
        assert labels_of(Wrapper(dataset, lambda y: 0 if y == 9 else y)).tolist() == [
            0 if label == 9 else label for label in LABELS
        ]

    def test_something_else_under_the_name_is_ignored(self) -> None:
        """VOC keeps file names in ``targets``, detection sets keep many boxes an image in ``labels``."""
        assert labels_of(Counted(targets=["a.xml"] * 10)).tolist() == LABELS
        assert labels_of(Counted(labels=[[1]] * 9 + [[1, 2]])).tolist() == LABELS
        assert labels_of(Counted(labels=["cat", "dog"])).tolist() == LABELS

    def test_inputs_alone_with_labels_stored_beside_them(self) -> None:
        assert labels_of(Counted(lambda i: torch.zeros(2), targets=LABELS)).tolist() == LABELS


class TestLoadedLabels:
    @pytest.mark.parametrize(
        ("item", "key"),
        [
            (lambda i: (0, LABELS[i]), None),
            (lambda i: (0, torch.tensor(LABELS[i])), None),
            (lambda i: (0, torch.tensor([LABELS[i]])), None),
            (lambda i: (0, np.int32(LABELS[i])), None),
            (lambda i: (0, float(LABELS[i])), None),
            (lambda i: {"image": 0, "label": LABELS[i]}, None),
            (lambda i: {"image": 0, "y": LABELS[i]}, None),
            (lambda i: {"label": 0, "fine": LABELS[i]}, "fine"),
            (lambda i: (LABELS[i], 0), 0),
            (lambda i: (0, 0, LABELS[i]), -1),
        ],
    )
    def test_items(self, item: Any, key: Any) -> None:
        assert labels_of(Counted(item), key).tolist() == LABELS

    def test_random_transforms_do_not_move_the_random_streams(self) -> None:
        def augmented(i: int) -> tuple[Tensor, int]:
            return torch.rand(2) * random.random() * np.random.rand(), LABELS[i]

        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        labels_of(Counted(augmented))
        found = random.random(), np.random.rand(), torch.rand(1)
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        assert found == (random.random(), np.random.rand(), torch.rand(1))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (lambda i: (0, "cat"), "integer class labels, found <U3 such as"),
        (lambda i: (0, 0.5), "integer class labels, found float64"),
        (lambda i: (0, float("nan")), "integer class labels"),
        (lambda i: (0, [0, 1]), r"shape \(10, 2\)"),
        (lambda i: (0, [0] * (1 + i)), "one integer class label for each item"),
        (lambda i: (0, 1, 2), "label_key=-1"),
        (lambda i: torch.zeros(2), "item 0 of Counted has no label"),
        (lambda i: {"image": 0}, "label, labels, target, targets, y"),
    ],
)
def test_labels_that_cannot_be_used(item: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labels_of(Counted(item))


@pytest.mark.parametrize("key", [2, -3, "label"])
def test_a_label_key_that_is_not_there(key: Any) -> None:
    with pytest.raises(InputError, match="not a position in an item of 2 parts"):
        labels_of(Counted(), key)


class TestSplitLabel:
    @pytest.mark.parametrize(
        ("item", "key", "expected"),
        [
            (("x", 1), None, ("x", 1)),
            (["x", 1], None, ("x", 1)),
            ((1, "x"), 0, ("x", 1)),
            (("a", "b", 1), -1, (("a", "b"), 1)),
            (("a", 1, "b"), 1, (("a", "b"), 1)),
            (("x",), None, ("x", None)),
            ("x", None, ("x", None)),
            ({"x": 0, "label": 1}, None, ({"x": 0}, 1)),
            ({"label": 0, "fine": 1}, "fine", ({"label": 0}, 1)),
            ({"x": 0, "labels": 1}, "label", ({"x": 0}, 1)),
            ({"x": 0}, None, ({"x": 0}, None)),
        ],
    )
    def test_inputs_and_label(self, item: Any, key: Any, expected: Any) -> None:
        assert split_label(item, key) == expected


class TestMapStyle:
    def test_a_loader_stands_for_what_it_reads(self) -> None:
        dataset = Counted()
        assert map_style(DataLoader(dataset)) is dataset
        assert map_style(DataLoader(dataset, sampler=WeightedRandomSampler([1.0] * 10, 5))) is dataset
        part = map_style(DataLoader(dataset, sampler=SubsetRandomSampler([5, 7])))
        assert labels_of(part).tolist() == [9, 6]

    def test_a_stream_is_refused_with_what_to_do(self) -> None:
        class Stream(IterableDataset[Any]):
            def __len__(self) -> int:
                return 1

            def __iter__(self):
                yield 0, 1

        for data in (Stream(), DataLoader(Stream()), iter([(0, 1)]), 3):
            with pytest.raises(InputError, match=r"map-style.*islice"):
                map_style(data)


@pytest.mark.parametrize("labels", [np.array([2**63, 1], dtype=np.uint64), np.array([1e19, 1.0])])
def test_labels_beyond_int64_are_refused(labels):
    with pytest.raises(InputError, match="below 2"):
        labels_of([(0.0, label) for label in labels])
