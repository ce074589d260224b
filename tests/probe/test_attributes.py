"""A probe set of two attributes: the classes are their combinations, wherever the attributes are in an item."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

import geomonitor as gm
from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.markers.factors import linear_factors
from geomonitor.measure.protocol import differences
from geomonitor.probe.label_key import checked_label_key, split_label
from geomonitor_integrations.lightning import GeometryCallback
from tests.processes import in_processes

N, SHAPES, COLOURS = 600, 3, 2
STREAM = torch.Generator().manual_seed(0)
SHAPE = torch.randint(SHAPES, (N,), generator=STREAM)
COLOUR = torch.randint(COLOURS, (N,), generator=STREAM) + 5
X = torch.randn(N, 8, generator=STREAM)
X[:, 0] += 3 * SHAPE
X[:, 1] += 2 * COLOUR


class Items(Dataset[Any]):
    """Items that are made by a function of their number."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class Columns(Items):
    """As a Hugging Face dataset: the attributes are read without an item."""

    column_names = ("inputs", "shape", "colour")

    def __getitem__(self, key: Any) -> Any:
        columns = {"inputs": X, "shape": SHAPE.tolist(), "colour": COLOUR.tolist()}
        return columns[key] if isinstance(key, str) else {name: values[key] for name, values in columns.items()}


NAMES = ("shape", "colour")
PLACES: dict[str, tuple[Any, Any]] = {
    "parts of a tuple in memory": (TensorDataset(X, SHAPE, COLOUR), (1, 2)),
    "parts of a tuple, counted from the end": (TensorDataset(X, SHAPE, COLOUR), (-2, -1)),
    "columns of a label in memory": (TensorDataset(X, torch.stack([SHAPE, COLOUR], dim=1)), (0, 1)),
    "parts of a tuple": (Items(lambda i: (X[i], SHAPE[i], int(COLOUR[i]))), (1, 2)),
    "fields of an item": (Items(lambda i: {"x": X[i], "shape": int(SHAPE[i]), "colour": COLOUR[i]}), NAMES),
    "fields of the label": (Items(lambda i: (X[i], {"colour": COLOUR[i], "shape": SHAPE[i]})), NAMES),
    "entries of the label": (Items(lambda i: (X[i], torch.tensor([9, SHAPE[i], COLOUR[i]]))), (1, 2)),
    "fields of a labelled item": (Items(lambda i: {"x": X[i], "label": (int(SHAPE[i]), int(COLOUR[i]))}), (0, 1)),
    "columns": (Columns(None), NAMES),
    "a list": ([(x, int(a), int(b)) for x, a, b in zip(X, SHAPE, COLOUR, strict=True)], [1, 2]),
    "a subset of two datasets": (
        Subset(
            ConcatDataset(
                [TensorDataset(X[:300], SHAPE[:300], COLOUR[:300]), TensorDataset(X[300:], SHAPE[300:], COLOUR[300:])]
            ),
            range(N),
        ),
        (1, 2),
    ),
    "a loader": (DataLoader(TensorDataset(X, SHAPE, COLOUR), batch_size=7), (1, 2)),
}


def chosen(dataset: Any, keys: Any, **options: Any) -> gm.ProbeSet:
    return gm.ProbeSet.from_dataset(dataset, label_key=keys, **{"per_class": 20, **options})


@pytest.mark.parametrize("where", PLACES)
def test_attributes_are_found_and_do_not_reach_the_model(where: str) -> None:
    probe = chosen(*PLACES[where])
    assert probe.attributes == (SHAPES, COLOURS)
    assert probe.classes == tuple(range(6))
    assert probe.made_from is not None
    assert probe.made_from["values"] == [[0, 1, 2], [5, 6]]
    assert (probe.labels == SHAPE[probe.indices] * 2 + COLOUR[probe.indices] - 5).all()
    batch = next(probe.loader(len(probe)))
    inputs: Any = batch.inputs
    inputs = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    assert torch.equal(inputs, X[probe.indices[batch.ids]])
    assert probe.indices.tolist() == chosen(TensorDataset(X, SHAPE, COLOUR), (1, 2)).indices.tolist()


def test_values_and_their_numbers_can_be_chosen() -> None:
    data = TensorDataset(X, SHAPE, COLOUR)
    whole = chosen(data, (1, 2))
    part = chosen(data, (1, 2), classes=((0, 2), None))
    assert part.attributes == (2, 2)
    assert part.classes == (0, 1, 4, 5)
    assert part.indices.tolist() == whole.indices.reshape(6, -1)[[0, 1, 4, 5]].flatten().tolist()  # of each its own
    assert chosen(data, (1, 2), classes=(2, [6, 5])).attributes == (2, 2)
    assert chosen(data, (2, 1)).made_from == {"attributes": [2, 1], "values": [[5, 6], [0, 1, 2]]}


def test_of_many_combinations_some_are_taken() -> None:
    first, second = torch.arange(2000) % 10, torch.arange(2000) // 10 % 10
    with pytest.warns(GeomonitorWarning, match="10 x 10 combinations; the probe set takes"):
        probe = chosen(TensorDataset(torch.randn(2000, 3), first, second), (1, 2), per_class=5)
    assert probe.attributes is not None
    assert math.prod(probe.attributes) == len(probe.classes) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 3}, "classes of two attributes has two parts, for 1 and 2"),
        ({"classes": ((0, 9), (5, 6))}, "values of the attribute 1: the dataset has no points of classes 9"),
        ({"classes": (1, 2)}, "values of the attribute 1: a probe set needs two"),
        ({"per_class": 100}, r"1=0 with 2=5: 97"),
        ({"quantile_bins": 3}, "leave out quantile_bins"),
        ({"label_sets": True}, "leave out quantile_bins and label_sets"),
        ({"label_key": (1, 1)}, "the names of two fields, or two positions"),
        ({"label_key": (1, "colour")}, "the names of two fields, or two positions"),
        ({"label_key": (0, 1, 2)}, "the names of two fields, or two positions"),
        ({"label_key": ("shape", "color")}, "found neither in an item, a tuple, nor in its label|which is the label"),
        ({"label_key": (1, 7)}, "which is the label is not known|found neither"),
    ],
)
def test_wrong_use_is_named_in_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        gm.ProbeSet.from_dataset(TensorDataset(X, SHAPE, COLOUR), **{"per_class": 20, "label_key": (1, 2), **options})


def test_other_wrong_data() -> None:
    kept = ~((SHAPE == 1) & (COLOUR == 6))
    with pytest.raises(InputError, match=r"none has 1=1 with 2=6\. Give classes="):
        chosen(TensorDataset(X[kept], SHAPE[kept], COLOUR[kept]), (1, 2))
    left = chosen(TensorDataset(X[kept], SHAPE[kept], COLOUR[kept]), (1, 2), classes=((0, 2), None))
    assert left.attributes == (2, 2)
    with pytest.raises(InputError, match="the attribute 2 is no whole number for each item"):
        chosen(TensorDataset(X, SHAPE, COLOUR + 0.5), (1, 2))
    with pytest.raises(InputError, match="integer class labels"):
        chosen(Items(lambda i: {"x": X[i], "shape": "round", "colour": "red"}), NAMES)
    with pytest.raises(InputError, match="a dict with 'x', 'shape', nor in its label"):
        chosen(Items(lambda i: {"x": X[i], "shape": 1}), NAMES)
    with pytest.raises(InputError, match="one field or position here"):
        gm.TransferProbe.from_dataset(TensorDataset(X, SHAPE, COLOUR), label_key=(1, 2))
    with pytest.raises(InputError, match="one field or position here"):
        checked_label_key(("shape", "colour"))


def test_views_of_items_that_drop_two_attributes() -> None:
    data = Items(lambda i: (X[i], int(SHAPE[i]), int(COLOUR[i])))
    probe = gm.ProbeSet.from_unlabelled(data, samples=10, views="noise", label_key=(1, 2))
    assert probe.views is not None
    assert next(probe.views.loader(5)).inputs.shape == (5, 8)
    model = nn.Sequential(nn.Linear(8, 4))
    values = {
        r.marker: r.value for r in gm.GeometryMonitor(probe, markers=["lidar"], panel=None).measure(model, step=0)
    }
    assert values["lidar"] > 1


def test_what_is_left_of_an_item() -> None:
    assert split_label(("left", 1, "right", 2), (1, -1)) == (("left", "right"), (1, 2))
    assert split_label({"x": 0.5, "y": {"shape": 1, "colour": 2}}, NAMES) == ({"x": 0.5}, {"shape": 1, "colour": 2})


class Network(nn.Module):
    """Gives the shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.head = nn.Linear(32, SHAPES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def factors_measured(_: int = 0) -> dict[str, tuple[float, float]]:
    monitor = gm.GeometryMonitor(chosen(*PLACES["parts of a tuple"]), layers="body")
    records = monitor.measure(Network(), step=0)
    return {r.marker: (r.value, r.standard_error) for r in records if "factor" in r.marker}


def test_a_monitor_measures_what_the_function_gives() -> None:
    probe = chosen(*PLACES["parts of a tuple"])
    with torch.no_grad():
        features = Network().body(X[probe.indices])
    expected = linear_factors(features, SHAPE[probe.indices], COLOUR[probe.indices])
    found = factors_measured()
    assert set(found) == {"linear_factor_score", "factor_orthogonality"}
    for name, (value, error) in found.items():
        assert value == pytest.approx(getattr(expected, name).item(), rel=1e-5)
        assert 0 < error < 1


def test_two_processes_measure_what_one_does() -> None:
    expected = factors_measured()
    for found in in_processes(factors_measured):
        assert found == {name: pytest.approx(both, rel=1e-6) for name, both in expected.items()}


def test_groups_and_names() -> None:
    probe, plain = chosen(TensorDataset(X, SHAPE, COLOUR), (1, 2)), gm.ProbeSet.from_dataset(TensorDataset(X, SHAPE))
    factors = {name for name, row in gm.MARKERS.items() if row.state == "factors"}
    for group in ("default", "all"):
        assert factors <= set(gm.GeometryMonitor(probe, markers=group).markers)
        assert not factors & set(gm.GeometryMonitor(plain, markers=group).markers)
    with pytest.raises(InputError, match="linear_factor_score: need two attributes of each point"):
        gm.GeometryMonitor(plain, markers=["linear_factor_score"])
    with pytest.raises(InputError, match="accuracy: need logits of the classes"):
        gm.GeometryMonitor(probe, markers=["accuracy"])
    swapped = chosen(TensorDataset(X, SHAPE, COLOUR), (2, 1))
    one, other = (gm.GeometryMonitor(each).protocol for each in (probe, swapped))
    assert "targets" in differences(one, other)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, shape, _ = batch
        return nn.functional.cross_entropy(self(x), shape)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_a_lightning_run_logs_them(tmp_path: Any) -> None:
    data = TensorDataset(X, SHAPE, COLOUR)
    callback = GeometryCallback(chosen(data, (1, 2)), layers=["penultimate", "network.body:output"])
    trainer = pl.Trainer(
        max_epochs=2, callbacks=[callback], default_root_dir=tmp_path, logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(data, batch_size=100))
    assert {r.layer for r in callback.monitor.history if r.marker == "linear_factor_score"} == set(
        callback.monitor.history.layers
    )
    for layer in callback.monitor.history.layers:
        series = callback.monitor.history.series(layer, "linear_factor_score")
        assert len(series.values) >= 2
        assert all(math.isfinite(value) for value in series.values)
    assert math.isfinite(float(trainer.callback_metrics["geometry/penultimate/linear_factor_score"]))


def test_points_that_are_not_finite_are_left_out() -> None:
    probe = chosen(*PLACES["parts of a tuple"])
    broken = int(probe.indices[7])

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model(torch.where((x == X[broken]).all(dim=1, keepdim=True), math.nan, x))

    monitor = gm.GeometryMonitor(probe, layers="body", forward=forward)
    with pytest.warns(GeomonitorWarning, match="NaN or infinite"):
        records = monitor.measure(Network(), step=0)
    kept = probe.indices[torch.arange(len(probe)) != 7]
    with torch.no_grad():
        expected = linear_factors(Network().body(X[kept]), SHAPE[kept], COLOUR[kept])
    values = {r.marker: r.value for r in records}
    assert values["linear_factor_score"] == pytest.approx(expected.linear_factor_score.item(), rel=1e-5)
