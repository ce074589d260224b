"""One measurement from model to records: what it finds, what it leaves alone, what it does when it fails."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.history.records import Series
from geomonitor.measure.probe_pass import call
from tests.agreement import assert_agree
from tests.options import grouped
from tests.processes import in_processes

CLASSES, PER_CLASS = 4, 15


def probe_set(per_class: int = PER_CLASS, seed: int = 0) -> gm.ProbeSet:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % CLASSES + 3  # labels need not start at 0
    centers = torch.randn(CLASSES, 6, generator=generator)
    dataset = TensorDataset(centers[labels - 3] + torch.randn(120, 6, generator=generator), labels)
    return gm.ProbeSet.from_dataset(dataset, per_class=per_class, seed=seed)


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 7))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model


def monitor(**options) -> gm.GeometryMonitor:
    return gm.GeometryMonitor(probe_set(), **grouped(**{"directions": 40, "on_error": "raise"} | options))


def values(records: list[gm.Record]) -> dict[str, float]:
    return {record.key: record.value for record in records if record.marker not in ("seconds", "overhead")}


def test_the_records_are_the_markers_of_the_layer():
    model = network().eval()
    measured = values(monitor(markers="all").measure(model, step=10, epoch=2))
    probe = probe_set()
    with torch.no_grad():
        features = model[:4](torch.stack([probe.dataset[i][0] for i in probe.indices]))
    geometry = gm.manifold_geometry(features, probe.labels, directions=40, ridge=gm.GeometryOptions().ridge)
    for name in ("capacity", "dimension", "radius", "utility", "axis_alignment"):
        assert measured[f"geometry/penultimate/{name}"] == pytest.approx(getattr(geometry, name).item(), rel=1e-9)
    expected = {
        "participation_ratio": gm.participation_ratio(features),
        "nc1": gm.neural_collapse(features, probe.labels)[0],
    }
    for name, value in expected.items():
        assert measured[f"geometry/penultimate/{name}"] == pytest.approx(value.item(), rel=1e-9)
    assert set(measured) == {
        f"geometry/penultimate/{name}"
        for name in [*gm.MARKER_GROUPS["all"], "nonfinite_rows", "alarm", "notice", "judged"]
    }


def test_standard_errors_come_with_the_sampled_markers_only():
    errors = {r.marker: r.standard_error for r in monitor().measure(network(), step=1)}
    assert errors["dimension"] > 0
    assert math.isnan(errors["participation_ratio"])


def test_default_markers_and_seconds():
    records = monitor().measure(network(), step=1)
    assert tuple(r.marker for r in records) == (
        *gm.MARKER_GROUPS["default"], "nonfinite_rows", "alarm", "notice", "judged", "seconds", "overhead"
    )  # fmt: skip
    assert 0 < records[-2].value < 60
    assert all(r.step == 1 and r.epoch is None for r in records)


def test_batch_size_does_not_matter():
    assert_agree(*(monitor(batch_size=size, markers="all").measure(network(), step=1) for size in (7, 60)))


def test_several_layers_with_aliases():
    measured = monitor(layers={"hidden": "0:output", "head": "4:input"}).measure(network(), step=1)
    assert {r.layer for r in measured} == {"hidden", "head", ""}


def _with_and_without(measure: bool) -> bytes:
    torch.manual_seed(0)
    model, watcher = network(), monitor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(6):
        loss = nn.functional.cross_entropy(model(torch.randn(16, 6)), torch.randint(0, 7, (16,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if measure:
            watcher.measure(model, step=step)
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), torch.get_rng_state()], buffer)
    return buffer.getvalue()


def test_weights_statistics_and_random_numbers_are_bit_identical():
    assert _with_and_without(True) == _with_and_without(False)


def test_no_hook_is_left():
    model, watcher = network(), monitor()
    watcher.measure(model, step=1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 7)
        self.broken = True

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            raise RuntimeError("out of cheese")
        return self.head(x)


def test_a_failing_measurement_is_warned_of_once_and_is_nan():
    model, watcher = Broken(), monitor(on_error="warn")
    with pytest.warns(gm.GeomonitorWarning, match=r"step 1; .* RuntimeError: out of cheese"):
        records = watcher.measure(model, step=1)
    assert all(math.isnan(r.value) for r in records[:-3])
    assert len(records) == len(gm.MARKER_GROUPS["default"]) + 6
    watcher.measure(model, step=2)  # the same cause is not told again: warnings are errors here
    model.broken = False
    assert math.isfinite(watcher.measure(model, step=3)[0].value)


def test_on_error_raise_raises():
    with pytest.raises(RuntimeError, match="out of cheese"):
        monitor().measure(Broken(), step=1)


def test_nan_activations_are_told_with_class_and_count():
    model = network()
    with torch.no_grad():
        model[4].bias.zero_()
        model[0].weight[0, 0] = math.nan
    with pytest.warns(gm.GeomonitorWarning, match="rows with NaN or infinite values"):
        records = monitor(on_error="warn").measure(model, step=1)
    assert math.isnan(records[0].value)


def test_a_wrong_layer_is_an_error_at_once_even_if_errors_are_warnings():
    with pytest.raises(gm.InputError, match="fc"):
        monitor(on_error="warn", layers="fc").measure(network(), step=1)


def low_from(step: int):
    """A detector that finds every series low from a step on."""

    def detector(series: Series) -> gm.Verdict:
        low = len(series.steps) > 0 and series.steps[-1] >= step
        return gm.Verdict(bool(low), series.layer, series.marker, 1.0, 2.0, 0.1, since_step=step, checks=1)

    return detector


def test_an_alarm_is_warned_of_once_and_recorded():
    watcher, model = monitor(detector=low_from(2)), network()
    assert values(watcher.measure(model, step=1))["geometry/penultimate/alarm"] == 0
    with pytest.warns(gm.GeometryDeclineWarning, match="dimension of 'penultimate' fell by 50 %"):
        assert values(watcher.measure(model, step=2))["geometry/penultimate/alarm"] == 1
    assert [verdict.layer for verdict in watcher.new_alarms] == ["penultimate"]
    assert values(watcher.measure(model, step=3))["geometry/penultimate/alarm"] == 1  # and no second warning
    assert watcher.new_alarms == []
    assert watcher.verdicts["penultimate"].declined


def test_no_detector_no_alarm():
    assert "alarm" not in {r.marker for r in monitor(detector=None).measure(network(), step=1)}


def test_a_restored_monitor_goes_on_as_the_unbroken_one(tmp_path):
    model = network()
    unbroken, first, second = (monitor(detector=low_from(2)) for _ in range(3))
    with pytest.warns(gm.GeometryDeclineWarning):
        for step in (1, 2, 3):
            unbroken.measure(model, step=step)
    with pytest.warns(gm.GeometryDeclineWarning):
        first.measure(model, step=1)
        first.measure(model, step=2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.measure(model, step=3)  # the alarm is known already: no warning

    def timeless(watcher: gm.GeometryMonitor) -> list[str]:
        return [repr(r._replace(time=0.0)) for r in watcher.history if r.marker not in ("seconds", "overhead")]

    assert timeless(second) == timeless(unbroken)


@pytest.mark.parametrize("option", [{"directions": 41}, {"dichotomies": "random"}, {"layers": "0"}, {"seed": 1}])
def test_another_protocol_is_refused(option):
    saved = monitor()
    saved.measure(network(), step=1)
    with pytest.raises(gm.InputError, match=f"{next(iter(option))}: .* -> "):
        monitor(**option).load_state_dict(saved.state_dict())
    changed = monitor(**option)
    changed.load_state_dict(saved.state_dict(), allow_protocol_change=True)
    assert len(changed.history) == 0


def test_another_probe_set_is_refused():
    other = gm.GeometryMonitor(probe_set(seed=1), geometry={"directions": 40})
    with pytest.raises(gm.InputError, match="probe"):
        other.load_state_dict(monitor().state_dict())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"markers": "dimensoin"}, "did you mean 'dimension'"),
        ({"markers": ["dimension"], "watch": ["nc1"]}, "watch must name at least one of the measured markers"),
        ({"on_error": "ignore"}, "on_error"),
    ],
)
def test_wrong_options_are_named(option, message):
    with pytest.raises(gm.InputError, match=message):
        monitor(**option)


def test_a_layer_whose_batch_does_not_come_first_is_told():
    class LengthFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(6, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.expand(5, *x.shape))[0])

    with pytest.raises(gm.MeasurementError, match="gave 5 rows for 60 points"):
        monitor().measure(LengthFirst(), step=1)


class Tokens(nn.Module):
    """Takes keyword arguments, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids))


def test_dict_inputs_with_a_padding_mask():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 6, (30,), generator=generator)
    ids = torch.randint(1, 20, (30, 6), generator=generator)
    mask = (torch.arange(6) < lengths[:, None]).long()

    def items(padding: int):
        filled = torch.where(mask.bool(), ids, padding)
        return [{"input_ids": filled[i], "attention_mask": mask[i], "labels": int(i % 3)} for i in range(30)]

    torch.manual_seed(0)
    model = Tokens()
    measured = []
    for padding in (0, 7):
        watcher = gm.GeometryMonitor(gm.ProbeSet.from_dataset(items(padding), per_class=8), geometry={"directions": 40})
        with pytest.warns(gm.GeomonitorWarning, match="no logits"):  # it gives some for each token
            measured.append(values(watcher.measure(model, step=1)))
    assert math.isnan(measured[0]["geometry/penultimate/accuracy"])
    assert measured[0] == pytest.approx(
        measured[1], rel=1e-15, nan_ok=True
    )  # what stands under the mask does not matter
    assert math.isfinite(measured[0]["geometry/penultimate/dimension"])


def _measure_in_parts(rank: int, per_class: int) -> dict[str, float]:
    watcher = gm.GeometryMonitor(probe_set(per_class), geometry={"directions": 40}, markers="all", on_error="raise")
    return values(watcher.measure(network(), step=1))


@pytest.mark.parametrize(("per_class", "world_size", "start"), [(15, 2, "spawn"), (13, 3, "forkserver")])
def test_processes_share_the_probe_pass_and_agree(per_class, world_size, start):
    alone = _measure_in_parts(0, per_class)
    for result in in_processes(_measure_in_parts, per_class, world_size=world_size, start=start):
        assert result == pytest.approx(alone, rel=1e-6, nan_ok=True)  # float32 forward passes of other shapes


def _fail_on_one(rank: int) -> list[str]:
    import warnings

    torch.manual_seed(0)
    model = Broken()
    model.broken = rank == 1
    watcher = monitor(on_error="warn")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        records = watcher.measure(model, step=1)
    assert all(math.isnan(r.value) for r in records[:-4])
    return [str(w.message) for w in told if issubclass(w.category, gm.GeomonitorWarning)]


def test_a_failure_in_one_process_is_a_failure_in_all_and_nobody_waits():
    told = in_processes(_fail_on_one)
    assert "failed in another process" in told[0][0]
    assert "out of cheese" in told[1][0]


def test_each_decomposition_of_the_features_once_a_layer(monkeypatch):
    shapes = []
    for name in ("svd", "svdvals", "eigh", "eigvalsh", "eig", "eigvals"):
        original = getattr(torch.linalg, name)

        def counted(matrix: Tensor, *args, _original=original, **options):
            shapes.append(tuple(matrix.shape[-2:]))
            return _original(matrix, *args, **options)

        monkeypatch.setattr(torch.linalg, name, counted)
    names = [name for name in gm.MARKER_GROUPS["all"] if gm.MARKERS[name].state != "manifolds"]
    layers = {"hidden": "2:output", "head": "4:input"}
    monitor(markers=names, watch=["nc1"], layers=layers).measure(network(), step=1)
    width, points = 32, CLASSES * PER_CLASS
    # The smaller Gram matrix, the centred features, and one more row for the raw ones; LAPACK gets them tall.
    of_all = [(width, width), (points, width), (points + 1, width)]
    of_a_class = [(PER_CLASS, PER_CLASS), (width, PER_CLASS), (width, PER_CLASS + 1)]
    assert sorted(shapes) == sorted(len(layers) * [*of_all, *CLASSES * of_a_class, (CLASSES, width)])
    shapes.clear()
    monitor(markers=["participation_ratio", "numerical_rank"], layers=layers).measure(network(), step=1)
    assert shapes == len(layers) * [(width, width)]


def test_a_type_error_within_the_model_is_not_taken_for_a_wrong_call():
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + None  # type: ignore[operator]

    class Needy(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return x * mask

    with pytest.raises(TypeError, match="unsupported operand"):
        call(Broken(), torch.ones(2))
    with pytest.raises(gm.MeasurementError, match="forward="):
        call(Needy(), torch.ones(2))


def test_a_detector_that_needs_settings_is_not_made_by_its_name_alone():
    with pytest.raises(gm.InputError, match=r"reference_runs does not take these settings.*reference"):
        monitor(detector="reference_runs")


class StatisticsOfTheBatch(nn.Module):
    """Of the kind of batch norm without running statistics, written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + 1e-5)


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm1d(16, track_running_stats=False), StatisticsOfTheBatch])
def test_batch_statistics_are_those_of_all_classes(norm):
    """A batch of one or two classes has other statistics, and would have other values."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(160) % 4
    dataset = TensorDataset(torch.randn(160, 8, generator=generator) + 3 * torch.eye(8)[labels], labels)
    probe = gm.ProbeSet.from_dataset(dataset, per_class=40)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), norm(), nn.ReLU(), nn.Linear(16, 4))
    found = [gm.GeometryMonitor(probe, batch_size=size, panel=None).measure(model, step=0) for size in (10, 20, 160)]
    *parts, whole = ({record.marker: record.value for record in records} for records in found)
    # Ten points estimate a mean to a third of a deviation. Class by class nc1 was 234 instead of 0.8.
    for part in parts:
        assert part["nc1"] == pytest.approx(whole["nc1"], rel=0.2)
        assert part["dimension"] == pytest.approx(whole["dimension"], rel=0.2)
