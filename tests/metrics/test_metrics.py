"""Metric classes: the pure functions are the reference; any split, order and number of processes gives the same."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

import geomonitor as gm
from geomonitor.markers.formulas import feature_markers
from geomonitor.markers.layer_points import LayerPoints
from geomonitor.markers.logits import logit_statistics
from geomonitor.markers.singular_values import Spectrum
from geomonitor.markers.spectrum import SPECTRUM_FORMULAS
from geomonitor.probe.reservoir import priority
from tests.processes import in_processes

CLASSES, PER_CLASS, WIDTH = 4, 20, 30
EXACT = 1e-10
"""All states are float64 sums or chosen points: only the order of additions differs."""


def data(points: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(points) % CLASSES
    centers = torch.randn(CLASSES, WIDTH, generator=generator)
    return centers[labels] + torch.randn(points, WIDTH, generator=generator), labels, torch.arange(points)


def head() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(CLASSES, WIDTH, generator=generator), torch.randn(CLASSES, generator=generator)


def points_metric() -> gm.PointStatistics:
    weight, bias = head()
    reference = torch.randn(CLASSES * PER_CLASS, 7, generator=torch.Generator().manual_seed(2))
    return gm.PointStatistics(CLASSES, per_class=PER_CLASS, weight=weight, bias=bias, reference=reference)


def columns() -> list[int]:
    """The unit in which each class is strongest."""
    return torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)).argmax(1).tolist()


def logits_metric() -> gm.LogitStatistics:
    """The features are its logits, too."""
    return gm.LogitStatistics(CLASSES, per_class=PER_CLASS, columns=columns())


def metrics() -> MetricCollection:
    return MetricCollection(
        {
            "manifolds": gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS, directions=40),
            "spectrum": gm.FeatureSpectrum(),
            "classes": gm.ClassStructure(CLASSES, weight=head()[0]),
            "points": points_metric(),
            "logits": logits_metric(),
        },
        compute_groups=False,
    )


def computed(batches: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    collection = metrics()
    for features, labels, ids in batches:
        collection.update(features, labels, ids=ids)
    return {name: value.item() for name, value in collection.compute().items()}


def batches(order: Tensor, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    features, labels, ids = data()
    return [(features[i], labels[i], ids[i]) for i in order.split(size)]


@pytest.fixture(scope="module")
def whole() -> dict[str, float]:
    return computed([data()])


def test_spectrum_and_classes_equal_the_pure_functions(whole):
    features, labels, _ = data()
    for name, formula in SPECTRUM_FORMULAS.items():
        assert whole[name] == pytest.approx(formula(Spectrum.of(features)).item(), rel=EXACT, nan_ok=True)
    for name, value in gm.neural_collapse(features, labels, weight=head()[0])._asdict().items():
        assert whole[name] == pytest.approx(value.item(), rel=EXACT, nan_ok=True)


def test_manifolds_equal_the_pure_function_on_the_chosen_points():
    features, labels, ids = data(CLASSES * PER_CLASS)  # all of them are chosen
    metric = gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS, directions=40, seed=3)
    metric.update(features, labels, ids)
    geometry = gm.manifold_geometry(features, labels, directions=40, seed=3)
    for name, value in metric.compute().items():
        source = geometry.standard_error if name.endswith("_standard_error") else geometry
        expected = getattr(source, name.removesuffix("_standard_error"))
        assert value.item() == pytest.approx(expected.item(), rel=1e-9)  # another order of points


def test_points_and_logits_equal_the_pure_functions_on_the_chosen_points():
    features, labels, ids = data(CLASSES * PER_CLASS)  # all of them are chosen
    points, logits = points_metric(), logits_metric()
    points.update(features, labels, ids)
    logits.update(features, labels, ids)
    order = [row for label in range(CLASSES) for row in _by_priority(ids[labels == label])]
    weight, bias = head()
    layer = LayerPoints(features[order], labels[order], weight=weight, bias=bias, reference=points.reference)
    expected = feature_markers(layer, points.names)
    assert {k: v.item() for k, v in points.compute().items()} == {k: v.item() for k, v in expected.items()}
    assert torch.equal(points.points()[0], features[order])
    assert torch.equal(points.points()[1], labels[order])
    expected = logit_statistics(features, torch.tensor(columns())[labels])._asdict()
    assert {k: v.item() for k, v in logits.compute().items()} == pytest.approx(
        {k: v.item() for k, v in expected.items()}, rel=EXACT, nan_ok=True
    )


def _by_priority(ids: Tensor) -> list[int]:
    return ids[priority(ids, 0).argsort()].tolist()


def test_the_names_of_a_metric_are_those_of_the_table(whole):
    measured = {name for name in whole if not name.endswith("_standard_error")}
    # GradientCoherence takes features and logits: tests/markers/test_coherence.py.
    assert measured | {*gm.GradientCoherence.names[:1]} == set(gm.MARKER_GROUPS["all"])
    assert not any(math.isnan(whole[name]) for name in measured - {"confident_accuracy"})


def test_only_what_is_asked_for_is_worked_out():
    features, labels, ids = data()
    metric = gm.PointStatistics(CLASSES, markers=["dead_units"])
    metric.update(features, labels, ids)
    assert list(metric.compute()) == ["dead_units"]
    with pytest.raises(gm.InputError, match="markers must be among"):
        gm.PointStatistics(CLASSES, markers=["dimension"])
    with pytest.raises(gm.InputError, match="did you mean 'dead_units'"):
        gm.PointStatistics(CLASSES, markers=["dead_unit"])


def test_logits_without_a_column_for_each_class_are_refused():
    with pytest.raises(gm.InputError, match=r"columns \(0, 1, 2\), but the logits have shape \(4, 2\)"):
        gm.LogitStatistics(3).update(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(gm.InputError, match="one column for each of 3 classes"):
        gm.LogitStatistics(3, columns=[1, 2])


@pytest.mark.parametrize("make", [gm.FeatureSpectrum, lambda: gm.PointStatistics(2), lambda: gm.LogitStatistics(2)])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_points_are_named(make):
    with pytest.raises(gm.InputError, match="no points"):
        make().compute()


@pytest.mark.parametrize("size", [1, 7, 64])
def test_any_batch_split_in_any_order(whole, size):
    order = torch.randperm(200, generator=torch.Generator().manual_seed(size))
    assert computed(batches(order, size)) == pytest.approx(whole, rel=EXACT, nan_ok=True)


def test_without_ids_the_position_in_the_stream_chooses():
    features, labels, ids = data()
    with_ids, without = (gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS, directions=40) for _ in range(2))
    with_ids.update(features, labels, ids)
    for part in torch.arange(200).split(23):
        without.update(features[part], labels[part])
    assert without.compute()["dimension"] == with_ids.compute()["dimension"]


def _rank_part(rank: int, case: str) -> dict[str, float]:
    everyone = torch.arange(200)
    parts = {
        "even": everyone[rank::2],
        "uneven": everyone[:37] if rank else everyone[37:],
        "empty rank": everyone[:0] if rank else everyone,
        "padded": torch.cat([everyone[rank::2], everyone[:3]]) if case == "padded" else everyone,
    }
    if case == "padded":  # samples seen twice count once where ids are known, that is, for the manifolds
        metric = gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS, directions=40)
        for batch in batches(parts[case], 50):
            metric.update(*batch)
        return {name: value.item() for name, value in metric.compute().items()}
    return computed(batches(parts[case], 50) if len(parts[case]) else [])


@pytest.mark.parametrize("case", ["even", "uneven", "empty rank", "padded"])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_give_what_one_gives(whole, case):
    for result in in_processes(_rank_part, case):
        assert result == pytest.approx({name: whole[name] for name in result}, rel=EXACT, nan_ok=True)


def _stream_part(rank: int) -> float:
    features, labels, _ = data()
    metric = gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS, directions=40)
    metric.update(features[rank::2], labels[rank::2])
    return metric.compute()["dimension"].item()


def test_two_processes_without_ids_follow_the_distributed_sampler(whole):
    assert in_processes(_stream_part) == pytest.approx([whole["dimension"]] * 2, rel=EXACT, nan_ok=True)


def test_reset_and_second_use(whole):
    collection = metrics()
    collection.update(torch.randn(20, 40), torch.arange(20) % CLASSES, ids=torch.arange(20))
    collection.reset()
    features, labels, ids = data()  # another width after a reset
    collection.update(features, labels, ids=ids)
    assert {k: v.item() for k, v in collection.compute().items()} == pytest.approx(whole, rel=EXACT, nan_ok=True)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.clone()])
def test_copies_go_on_where_the_original_was(whole, copied):
    first, second = batches(torch.arange(200), 100)
    collection = metrics()
    collection.update(first[0], first[1], ids=first[2])
    collection = copied(collection)
    collection.update(second[0], second[1], ids=second[2])
    assert {k: v.item() for k, v in collection.compute().items()} == pytest.approx(whole, rel=EXACT, nan_ok=True)


def test_state_dict_round_trip(whole):
    first, second = batches(torch.arange(200), 100)
    source, target = metrics(), metrics()
    source.persistent(True)
    target.persistent(True)
    source.update(first[0], first[1], ids=first[2])
    target.load_state_dict(source.state_dict())
    target.update(second[0], second[1], ids=second[2])
    assert {k: v.item() for k, v in target.compute().items()} == pytest.approx(whole, rel=EXACT, nan_ok=True)


@pytest.mark.parametrize("metric", [gm.FeatureSpectrum(), gm.ClassStructure(2)])
def test_moment_states_are_bounded(metric):
    for _ in range(30):
        metric.update(torch.randn(50, 10), torch.arange(50) % 2)
    assert metric.factors[0].shape[0] <= 20


def test_forward_accumulates_as_update_does(whole):
    collection = metrics()
    for features, labels, ids in batches(torch.arange(200), 40):
        collection(features, labels, ids=ids)
    assert {k: v.item() for k, v in collection.compute().items()} == pytest.approx(whole, rel=EXACT, nan_ok=True)
    stream = gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS, directions=40)
    for features, labels, _ in batches(torch.arange(200), 40):
        stream(features, labels)
    assert stream.compute()["dimension"].item() == pytest.approx(whole["dimension"], rel=EXACT)


@pytest.mark.parametrize("name", ["manifolds", "spectrum", "classes", "logits"])
def test_forward_returns_the_value_of_the_batch_alone(name):
    metric, alone = metrics()[name], metrics()[name]
    features, labels, _ = data()
    metric(features[:100], labels[:100])
    value = metric(features[100:140], labels[100:140])
    alone.update(features[100:140], labels[100:140])
    assert {k: v.item() for k, v in value.items()} == pytest.approx(
        {k: v.item() for k, v in alone.compute().items()}, rel=EXACT, nan_ok=True
    )
    assert all(isinstance(v, Tensor) and v.shape == () for v in value.values())


def test_forward_of_a_batch_that_lacks_a_class_is_nan_and_keeps_what_came_before(whole):
    features, labels, ids = data()
    for name, metric in metrics().items():
        metric(features[::4], labels[::4], **({"ids": ids[::4]} if name in ("manifolds", "points", "logits") else {}))
    metric = gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS, directions=40)
    for label in range(CLASSES):
        part = labels == label
        value = metric(features[part], labels[part], ids[part])
        assert set(value) == set(metric.names)
        assert all(math.isnan(v) for v in value.values())
    assert metric.compute()["dimension"].item() == pytest.approx(whole["dimension"], rel=EXACT)


def test_a_batch_that_is_refused_leaves_the_state_as_it_was():
    features, labels, _ = data()
    for metric in metrics().values():
        metric(features, labels)
        before = {k: v.item() for k, v in metric.compute().items() if k != "drift"}
        with pytest.raises(gm.InputError):
            metric(features[:, :3], labels)
        metric._computed = None
        assert {k: v.item() for k, v in metric.compute().items() if k != "drift"} == pytest.approx(before, nan_ok=True)


def test_collections_with_compute_groups(whole):
    collection = MetricCollection(dict(metrics().items()))
    for features, labels, ids in batches(torch.arange(200), 40):
        collection(features, labels, ids=ids)
    assert {k: v.item() for k, v in collection.compute().items()} == pytest.approx(whole, rel=EXACT, nan_ok=True)


@pytest.mark.parametrize("name", ["manifolds", "points", "logits", "spectrum", "classes"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_merged_shards_with_ids_are_the_whole(whole, name, as_dict):
    features, labels, ids = data()
    first, second = metrics()[name], metrics()[name]
    named = name in ("manifolds", "points", "logits")
    for metric, part in (
        (first, slice(100)),
        (second, slice(90 if named else 100, None)),
    ):  # ten come twice, count once
        metric.update(features[part], labels[part], **({"ids": ids[part]} if named else {}))
    first.merge_state(second.metric_state if as_dict else second)
    values = {k: v.item() for k, v in first.compute().items()}
    assert values == pytest.approx({k: whole[k] for k in values}, rel=EXACT, nan_ok=True)


def test_merged_shards_without_ids_lose_no_points():
    features, labels, _ = data(CLASSES * PER_CLASS)
    whole, *shards = (gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS, directions=40) for _ in range(4))
    whole.update(features, labels)
    for shard, part in zip(shards, torch.arange(len(labels)).split([30, 30, 20]), strict=True):
        shard.update(features[part], labels[part])
    first, second, third = shards
    second.merge_state(third)
    first.merge_state(second)
    assert len(first._points()[0]) == len(features)
    assert first.compute()["dimension"].item() == pytest.approx(whole.compute()["dimension"].item(), rel=EXACT)
    more = torch.randn(CLASSES, WIDTH)
    roomy = gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS + 1, directions=40)
    other = gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS + 1, directions=40)
    roomy.update(features[:40], labels[:40])
    other.update(features[40:], labels[40:])
    roomy.merge_state(other)
    roomy.update(more, torch.arange(CLASSES))  # what comes after a merge is no repetition either
    assert len(roomy._points()[0]) == len(features) + CLASSES


def test_merged_shards_that_overflow_keep_both_fairly():
    kept = gm.PointStatistics(1, per_class=200, markers=["mean_norm"])
    other = kept.clone()
    kept.update(torch.zeros(2000, 1), torch.zeros(2000, dtype=torch.long))
    other.update(torch.ones(2000, 1), torch.zeros(2000, dtype=torch.long))
    kept.merge_state(other)
    share = kept.points()[0].mean().item()
    assert len(kept.points()[0]) == 200
    assert share == pytest.approx(0.5, abs=0.02)  # both had the same priorities: they take turns


def test_only_metrics_of_one_class_merge():
    with pytest.raises(gm.InputError, match="state of a FeatureSpectrum; got ClassStructure"):
        gm.FeatureSpectrum().merge_state(gm.ClassStructure(2))


def test_the_whole_geometry_is_a_public_result():
    features, labels, ids = data()
    metric = gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS, directions=40)
    metric.update(features, labels, ids)
    geometry = metric.geometry()
    assert isinstance(geometry, gm.EffectiveGeometry)
    assert geometry.dimension == metric.compute()["dimension"]
    assert geometry.samples.influence.shape == (40, 10)


def test_log_dict_in_a_lightning_module(tmp_path):
    lightning = pytest.importorskip("lightning")
    features, labels, _ = data()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(WIDTH, CLASSES)
            self.spectrum = gm.FeatureSpectrum()
            self.manifolds = gm.ManifoldGeometry(CLASSES, per_class=PER_CLASS, directions=10)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            self.log_dict(self.spectrum(batch[0]))  # the value of a batch
            return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.manifolds.update(batch[0], batch[1])

        def on_validation_epoch_end(self) -> None:
            self.log_dict({f"val/{name}": value for name, value in self.manifolds.compute().items()})
            self.manifolds.reset()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(features, labels), batch_size=50)
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, on workers and intervals
        trainer.fit(Module(), loader, loader)
    expected = gm.manifold_geometry(features[: CLASSES * PER_CLASS], labels[: CLASSES * PER_CLASS], directions=10)
    assert set(trainer.callback_metrics) >= {"val/dimension", "val/dimension_standard_error", "participation_ratio"}
    assert 0 < trainer.callback_metrics["val/dimension"] < 2 * expected.dimension


def test_manifold_state_is_bounded_and_forward_works():
    metric = gm.ManifoldGeometry(2, per_class=5, directions=10)
    for _ in range(10):
        metric(torch.randn(50, 10), torch.arange(50) % 2)
    assert metric.features[0].shape == (2, 5, 10)


def test_to_device_keeps_float64():
    metric = gm.ClassStructure(2)
    metric.update(torch.randn(8, 3), torch.arange(8) % 2)
    metric.to("cpu", torch.float16).half()
    assert metric.factors[0].dtype == torch.float64


def test_half_precision_batches_are_exact():
    features, labels, ids = data()
    for dtype in (torch.float16, torch.bfloat16):
        rounded = features.to(dtype)
        assert computed([(rounded, labels, ids)]) == pytest.approx(
            computed([(rounded.double(), labels, ids)]), rel=1e-12, nan_ok=True
        )


def test_plot_draws_every_marker():
    pytest.importorskip("matplotlib").use("Agg")
    metric = gm.FeatureSpectrum()
    metric.update(torch.randn(20, 5))
    _, axis = metric.plot()
    assert [label.get_text() for label in axis.get_yticklabels()] == list(metric.compute())


def test_nan_rows_are_named_at_compute_and_do_not_poison_the_state():
    features, labels, ids = data()
    features[[1, 5, 2], [0, 3, 4]] = torch.tensor([math.nan, math.inf, -math.inf])
    for metric in metrics().values():
        with pytest.raises(ValueError, match="rows with NaN or infinite"):
            metric.update(features, labels) or metric.compute()
    metric = gm.ClassStructure(CLASSES)
    metric.update(features, labels)
    with pytest.raises(gm.InputError, match=r"class: rows = \{1: 2, 2: 1\}"):
        metric.compute()
    assert torch.isfinite(metric.factors[0]).all()


@pytest.mark.parametrize("make", [lambda: gm.ClassStructure(3), lambda: gm.ManifoldGeometry(3, directions=10)])
def test_wrong_labels_and_empty_classes_are_named(make):
    features = torch.randn(6, 4)
    out_of_range = make()
    out_of_range.update(features, torch.tensor([0, 1, 2, 3, -1, 0]))
    with pytest.raises(gm.InputError, match=r"0 \.\. 2; 2 were not"):
        out_of_range.compute()
    missing = make()
    missing.update(features, torch.tensor([0, 2, 0, 2, 0, 2]))
    with pytest.raises(gm.InputError, match=r"classes without any: \[1\]"):
        missing.compute()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.randn(4), torch.zeros(4, dtype=torch.long)), r"\(Q, N\)"),
        ((torch.randn(4, 3), torch.zeros(5, dtype=torch.long)), "Q = 4"),
        ((torch.randn(4, 3), torch.zeros(4)), "integers"),
        ((torch.randn(4, 7), torch.zeros(4, dtype=torch.long)), "7 units after 5"),
    ],
)
@pytest.mark.parametrize("make", [lambda: gm.ClassStructure(3), lambda: gm.ManifoldGeometry(3)])
def test_wrong_batches_are_errors_at_update(make, args, message):
    metric = make()
    metric.update(torch.randn(3, 5), torch.arange(3))
    with pytest.raises(gm.InputError, match=message):
        metric.update(*args)


def test_update_never_waits_for_the_device():
    """On the meta device any ``.item()``, ``bool(tensor)`` or value-dependent shape raises."""
    features, labels = torch.randn(8, 5, device="meta"), torch.zeros(8, dtype=torch.long, device="meta")
    by_points = [make(3, per_class=2) for make in (gm.ManifoldGeometry, gm.PointStatistics, gm.LogitStatistics)]
    for metric in (gm.FeatureSpectrum(), gm.ClassStructure(3), *by_points):
        metric.to("meta")
        for _ in range(4):
            metric.update(features, labels)
