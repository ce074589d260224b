"""Targets that are no classes: regression and several labels an item."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import KBinsDiscretizer, MultiLabelBinarizer
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import geomonitor as gm
from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.measure.protocol import differences
from geomonitor.probe.datasets import targets_of
from geomonitor.probe.targets import binned, kind_of, numbered_sets

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(300, 6, generator=GENERATOR)
Y = X[:, 0] + 0.1 * torch.randn(300, generator=GENERATOR)
SEVERAL = (X[:, :3] > 0.2).long()


class Items(Dataset[Any]):
    """Targets that are known from the items alone."""

    def __init__(self, targets: Any) -> None:
        self.rows = targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return X[index], self.rows[index]


def everything(n: int) -> np.ndarray:
    return np.arange(n)


class TestBins:
    @pytest.mark.parametrize("bins", [2, 5, 7])
    def test_are_those_of_scikit_learn(self, bins: int) -> None:
        values = np.random.default_rng(bins).normal(size=212) ** 3
        labels, edges = binned(values, bins, everything(212))
        how: dict[str, Any] = {"strategy": "quantile", "encode": "ordinal", "quantile_method": "linear"}
        theirs = KBinsDiscretizer(bins, subsample=None, **how).fit(values[:, None])
        assert np.allclose(edges, theirs.bin_edges_[0][1:-1], rtol=1e-12)
        assert (labels == theirs.transform(values[:, None])[:, 0]).all()  # no quantile is one of the values
        assert np.bincount(labels).min() >= 212 // bins

    def test_equal_targets_stay_together_and_empty_bins_vanish(self) -> None:
        values = np.array([0.0] * 60 + list(range(1, 41)))
        labels, edges = binned(values, 5, everything(100))
        assert set(labels[:60]) == {0}
        assert labels.max() == len(set(labels)) - 1 == 2
        assert edges == pytest.approx([0.0, 0.4, 20.2])  # of fifths: 0, 0, 0.4 and 20.2

    def test_a_target_that_is_an_edge_is_in_the_lower_bin(self) -> None:
        labels, edges = binned(np.arange(1.0, 6.0), 4, everything(5))
        assert edges == [2.0, 3.0, 4.0]
        assert labels.tolist() == [0, 0, 1, 2, 3]

    def test_an_increasing_map_changes_no_bin(self) -> None:
        values = np.random.default_rng(0).normal(size=101)  # so that every quantile of fifths is a target
        assert (binned(values, 5, everything(101))[0] == binned(np.exp(values), 5, everything(101))[0]).all()

    def test_repeated_items_do_not_move_the_quantiles(self) -> None:
        values = np.array([1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0])
        assert binned(values, 2, np.arange(4))[1] == [2.5]

    @pytest.mark.parametrize(
        ("targets", "bins", "message"),
        [
            (np.zeros(9), 3, "gives a single class: nearly all targets are 0"),
            (np.array([0.0, math.nan, 1.0]), 2, "finite targets; 1 of 3"),
            (np.zeros((9, 2)), 2, r"one number for each item as its target; got float64 of shape \(9, 2\)"),
            (np.arange(9.0), 1, "quantile_bins is a whole number, 2 or more"),
        ],
    )
    def test_bad_input_is_named_in_a_sentence(self, targets: np.ndarray, bins: int, message: str) -> None:
        with pytest.raises(InputError, match=message):
            binned(targets, bins, everything(len(targets)))


class TestSets:
    def test_several_hot_and_lists_of_labels_are_the_same(self) -> None:
        rows = SEVERAL.numpy()
        lists = np.empty(len(rows), dtype=object)
        lists[:] = [tuple(np.flatnonzero(row)) for row in rows]
        assert (MultiLabelBinarizer(classes=[0, 1, 2]).fit_transform(lists) == rows).all()
        first, second = (numbered_sets(each, 5, everything(300)) for each in (rows, lists))
        assert (first[0] == second[0]).all()
        assert first[1] == second[1]

    def test_are_the_distinct_rows_and_rare_ones_are_in_no_class(self) -> None:
        labels, sets = numbered_sets(SEVERAL.numpy(), 20, everything(300))
        distinct, inverse, counts = np.unique(SEVERAL.numpy(), axis=0, return_inverse=True, return_counts=True)
        assert ((labels < 0) == (counts[inverse.ravel()] < 20)).all()
        for number, found in enumerate(sets):
            row = np.isin(np.arange(3), found).astype(int)
            assert ((labels == number) == (SEVERAL.numpy() == row).all(1)).all()

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            (np.array([[1, 0], [0, 1], [0, 0]]), "1 of 3 have as many|0 of 3 have as many"),
            (np.arange(4.0), "0 or 1 for each label"),
            (np.array([[0.5, 0.2]]), "0 or 1 for each label"),
        ],
    )
    def test_bad_input_is_named_in_a_sentence(self, targets: np.ndarray, message: str) -> None:
        with pytest.raises(InputError, match=message):
            numbered_sets(targets, 2, everything(len(targets)))


def test_what_targets_are() -> None:
    assert kind_of(np.array([3.0, 5.0])) == "classes"
    assert kind_of(np.array([math.nan, 5.0])) == kind_of(np.array([[0.2, 1.0]])) == "numbers"
    assert kind_of(np.array([[0, 0], [1, 1]])) == "label sets"
    for wrong, message in ((np.eye(3), "argmax"), (np.zeros((2, 2, 2)), "shape"), (np.array(["a"]), "integer class")):
        with pytest.raises(InputError, match=message):
            kind_of(wrong)


@pytest.mark.parametrize("targets", [Y, Y.double().numpy(), SEVERAL, [[1], [1, 2], [2]] * 100])
def test_stored_and_loaded_targets_are_the_same(targets: Any) -> None:
    loaded = targets_of(Items(targets))
    if torch.is_tensor(targets):
        whole = TensorDataset(X, targets)
        halves = ConcatDataset([Subset(whole, range(150)), Subset(whole, range(150, 300))])
        assert np.array_equal(loaded, targets_of(whole))
        assert np.array_equal(loaded, targets_of(halves))
    assert loaded.shape == np.asarray(targets, dtype=object if isinstance(targets, list) else None).shape


class TestProbeSet:
    def test_regression_has_no_labels_unless_bins_are_asked_for(self) -> None:
        with pytest.warns(GeomonitorWarning, match=r"no classes \(numbers.*quantile_bins=5"):
            probe = gm.ProbeSet.from_dataset(TensorDataset(X, Y), per_class=20)
        same = gm.ProbeSet.from_unlabelled(TensorDataset(X, Y), samples=40)
        assert not probe.labelled
        assert probe.fingerprint == same.fingerprint
        assert probe.made_from == {"left_out": "numbers"}

    def test_bins_are_classes_of_the_targets(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, logger="geomonitor"):
            probe = gm.ProbeSet.from_dataset(TensorDataset(X, Y), per_class=20, quantile_bins=4)
        assert "4 classes are quantile bins of the targets, cut at" in caplog.text
        assert len(caplog.records) == 1
        assert probe.classes == (0, 1, 2, 3)
        assert len(probe) == 80
        assert probe.labelled
        edges = probe.made_from["edges"]
        assert np.array_equal(np.searchsorted(edges, Y[probe.indices].numpy()), probe.labels.numpy())
        assert edges == pytest.approx(np.quantile(Y.numpy(), [0.25, 0.5, 0.75]), rel=1e-6)

    def test_label_sets_are_classes(self) -> None:
        with pytest.warns(GeomonitorWarning, match="items are in no class"):
            probe = gm.ProbeSet.from_dataset(TensorDataset(X, SEVERAL), per_class=25, label_sets=True)
        for index, label in zip(probe.indices, probe.labels, strict=True):
            assert SEVERAL[index].nonzero()[:, 0].tolist() == probe.made_from["label_sets"][label]

    def test_several_labels_are_left_out_unless_asked_for(self) -> None:
        with pytest.warns(GeomonitorWarning, match=r"label sets.*label_sets=True"):
            assert not gm.ProbeSet.from_dataset(TensorDataset(X, SEVERAL), per_class=20).labelled

    @pytest.mark.filterwarnings("ignore::geomonitor.errors.GeomonitorWarning")
    def test_errors(self) -> None:
        data = TensorDataset(X, Y)
        for options, message in (
            ({"classes": 3}, "classes= needs targets that are classes"),
            ({"quantile_bins": 3, "label_sets": True}, "not both"),
            ({"label_sets": True}, "0 or 1 for each label"),
            ({"label_sets": 1}, "label_sets is True or False"),
            ({"quantile_bins": 3, "per_class": 200}, "fewer points"),
        ):
            with pytest.raises(InputError, match=message):
                gm.ProbeSet.from_dataset(data, **options)
        with pytest.raises(InputError, match="needs a dataset with class labels"):
            gm.TransferProbe.from_dataset(data)


class TestMonitor:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

    def test_bins_measure_the_geometry_and_no_logits(self) -> None:
        """The head has as many outputs as there are bins; they are not those of the bins."""
        probe = gm.ProbeSet.from_dataset(TensorDataset(X, Y), per_class=20, quantile_bins=4)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
        for layers in ("penultimate", "2:input"):
            monitor = gm.GeometryMonitor(probe, layers=layers, markers="all", on_error="raise")
            monitor.measure(model, step=1)
            latest = {r.marker: r.value for r in monitor.history if r.layer}
            assert latest["dimension"] > 0
            assert latest["nc1"] > 0
            assert not {"accuracy", "nc3", "nc4", "auroc"} & set(latest)
        with pytest.raises(InputError, match="accuracy: need logits of the classes"):
            gm.GeometryMonitor(probe, markers=["dimension", "accuracy"])

    def test_what_was_done_is_in_the_protocol(self) -> None:
        data = TensorDataset(X, Y)
        four, five = (
            gm.GeometryMonitor(gm.ProbeSet.from_dataset(data, per_class=20, quantile_bins=n)).protocol for n in (4, 5)
        )
        assert four["targets"]["quantile_bins"] == 4
        assert json.loads(json.dumps(four)) == four
        assert {"probe", "targets"} <= set(differences(four, five))

    def test_regression_without_labels_in_a_monitor(self) -> None:
        with pytest.warns(GeomonitorWarning, match="no classes"):
            probe = gm.ProbeSet.from_dataset(TensorDataset(X, Y), per_class=20)
        monitor = gm.GeometryMonitor(probe, on_error="raise")
        monitor.measure(self.model, step=1)
        assert "dimension" not in monitor.markers
        assert "participation_ratio" in monitor.markers
        assert monitor.protocol["targets"] == {"left_out": "numbers"}
