"""Other content has another fingerprint, equal content the same one; a dataset that is random has none."""

from __future__ import annotations

import collections
import dataclasses
import subprocess
import sys
import warnings
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.measure.protocol import differences
from geomonitor.probe.content import UnknownContentError, digest

Image = pytest.importorskip("PIL.Image")
Pair = collections.namedtuple("Pair", "left right")


@dataclasses.dataclass
class Sample:
    pixels: Any
    text: str


class Graph:
    def __init__(self, edges: list[int]) -> None:
        self.edges = edges

    def to_dict(self) -> dict[str, Any]:
        return {"edges": self.edges}


def image(value: int, mode: str = "RGB") -> Any:
    return Image.new(mode, (3, 2), value)


# Each row: makes an item, and one that differs in the last place.
PAIRS: list[tuple[Any, Any]] = [
    (lambda: torch.arange(4.0), lambda: torch.tensor([0, 1, 2, 3.0000002])),
    (lambda: torch.arange(4.0), lambda: torch.arange(4.0).reshape(2, 2)),
    (lambda: torch.zeros(2), lambda: -torch.zeros(2)),
    (lambda: torch.zeros(2), lambda: torch.zeros(2, dtype=torch.int32)),
    (lambda: torch.ones(3, dtype=torch.bfloat16), lambda: torch.ones(3, dtype=torch.float16)),
    (lambda: torch.tensor(True), lambda: torch.tensor(False)),
    (lambda: torch.ones(2, dtype=torch.complex64), lambda: torch.ones(2, dtype=torch.complex64) * 1j),
    (lambda: torch.eye(2).to_sparse(), lambda: (2 * torch.eye(2)).to_sparse()),
    (lambda: np.arange(3), lambda: np.arange(3)[::-1]),
    (lambda: np.array(["a", "b"]), lambda: np.array(["a", "c"])),
    (lambda: np.array([1, "x", None], dtype=object), lambda: np.array([1, "y", None], dtype=object)),
    (lambda: np.float32(1), lambda: np.float32(2)),
    (lambda: image(3), lambda: image(4)),
    (lambda: image(1, "L"), lambda: image(1, "P")),
    (lambda: "cat", lambda: "cab"),
    (lambda: b"\0", lambda: b"\1"),
    (lambda: 1.5, lambda: 1.25),
    (lambda: {"a": torch.ones(1), "b": 2}, lambda: {"a": torch.ones(1), "b": 3}),
    (lambda: {"a": 1}, lambda: {"b": 1}),
    (lambda: ("ab", "c"), lambda: ("a", "bc")),
    (lambda: ([1], 2), lambda: (1, [2])),
    (lambda: Pair(1, (2, {"x": torch.ones(2)})), lambda: Pair(1, (2, {"x": torch.zeros(2)}))),
    (lambda: {1, 2, 3}, lambda: {1, 2}),
    (lambda: Sample(np.ones(2), "t"), lambda: Sample(np.ones(2), "u")),
    (lambda: Graph([1, 2]), lambda: Graph([2, 1])),
    (lambda: PurePosixPath("a/b"), lambda: PurePosixPath("a/c")),
]


@pytest.mark.parametrize(("make", "other"), PAIRS)
def test_equal_items_are_equal_and_others_are_not(make, other):
    assert digest(make()) == digest(make())
    assert digest(make()) != digest(other())


def test_neither_the_order_of_a_mapping_nor_memory_counts():
    whole = torch.arange(12.0).reshape(3, 4)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(whole[:, 1]) == digest(whole[:, 1].clone())
    assert digest(np.arange(6).reshape(2, 3).T) == digest(np.ascontiguousarray(np.arange(6).reshape(2, 3).T))
    assert digest(np.arange(3, dtype=">i4")) == digest(np.arange(3, dtype="<i4"))
    assert digest(torch.nn.Parameter(torch.ones(2))) == digest(torch.ones(2))


def test_the_same_in_another_process():
    program = (
        "import torch; from geomonitor.probe.content import digest; print(digest(({'x', 'y', 'z'}, torch.eye(2))))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == digest(({"z", "y", "x"}, torch.eye(2)))


@pytest.mark.parametrize("item", [object(), (1, lambda: 1), {"x": iter([])}])
def test_what_has_no_content(item):
    with pytest.raises(UnknownContentError, match="cannot be compared"):
        digest(item)


def test_an_item_that_holds_itself():
    item: list[Any] = []
    item.append(item)
    with pytest.raises(UnknownContentError, match="too deep"):
        digest(item)


INPUTS, LABELS = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


class Read(torch.utils.data.Dataset[Any]):
    """Items by a function of the index."""

    targets = LABELS.tolist()

    def __init__(self, get: Any) -> None:
        self.get = get

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        return self.get(index)


def probe(dataset: Any, **options: Any) -> gm.ProbeSet:
    return gm.ProbeSet.from_dataset(dataset, per_class=10, **options)


@pytest.mark.parametrize(
    "changed",
    [INPUTS * 1.01, INPUTS.flip(1), INPUTS.double(), torch.randn(60, 5)],
    ids=["normalised anew", "flipped", "float64", "other"],
)
def test_other_data_under_the_same_indices(changed):
    one, same, other = (probe(TensorDataset(x, LABELS)) for x in (INPUTS, INPUTS.clone(), changed))
    assert one.content == same.content != other.content
    assert one.fingerprint == same.fingerprint == other.fingerprint
    monitors = [gm.GeometryMonitor(each) for each in (one, same, other)]
    monitors[1].load_state_dict(monitors[0].state_dict())
    with pytest.raises(gm.InputError, match="content \\(other data under the same indices\\)"):
        monitors[2].load_state_dict(monitors[0].state_dict())
    monitors[2].load_state_dict(monitors[0].state_dict(), allow_protocol_change=True)


def test_a_state_without_content_is_joined():
    monitor = gm.GeometryMonitor(probe(TensorDataset(INPUTS, LABELS)))
    state = monitor.state_dict()
    del state["protocol"]["content"]
    monitor.load_state_dict(state)
    assert differences(monitor.protocol, state["protocol"]) == []


def draws_from_a_global_stream(index: int) -> Any:
    return INPUTS[index] + torch.randn(5), int(LABELS[index])


def draws_from_a_generator(generator: Any) -> Any:
    return lambda index: (INPUTS[index] + torch.tensor(generator.normal(size=5)), int(LABELS[index]))


@pytest.mark.parametrize(
    "get",
    [
        draws_from_a_global_stream,
        draws_from_a_generator(np.random.default_rng()),
        lambda index: (image(int(np.random.randint(256))), int(LABELS[index])),
        lambda index: ({"ids": torch.randperm(5)}, int(LABELS[index])),
    ],
    ids=["torch", "generator of its own", "images", "dict"],
)
def test_a_random_dataset_is_named_and_has_no_content(get):
    state = torch.get_rng_state()
    with pytest.warns(gm.GeomonitorWarning, match="Read gives other items each time they are read .*such as index"):
        found = probe(Read(get))
    assert found.content is None
    found.check_content()
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_content_is_named():
    with pytest.warns(gm.GeomonitorWarning, match=r"builtins\.object, whose content cannot be compared"):
        assert probe(Read(lambda index: ((INPUTS[index], object()), int(LABELS[index])))).content is None


@pytest.mark.parametrize("what", ["inputs", "labels"])
def test_data_that_change_underneath(what):
    inputs, labels = INPUTS.clone(), LABELS.clone()
    found = probe(TensorDataset(inputs, labels))
    found.check_content()
    if what == "inputs":
        inputs.mul_(2)
    else:
        labels.copy_(labels.flip(0))
    with pytest.raises(gm.MeasurementError, match="have changed since it was made: TensorDataset"):
        found.check_content()


def test_a_random_stream_does_not_count_as_a_change():
    """Drawn from the seeded streams, and thrown away: the items are the same."""

    def get(index: int) -> Any:
        torch.rand(1)
        return INPUTS[index], int(LABELS[index])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probe(Read(get))
    torch.rand(7)
    found.check_content()
