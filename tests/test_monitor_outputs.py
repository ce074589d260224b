"""What a measurement makes of outputs: logits, the head, drift, accuracy under shifts; groups of markers by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from tests.options import grouped
from tests.processes import in_processes
from tests.test_monitor import CLASSES, PER_CLASS, monitor, network, probe_set, values

PROBE_KEY = "geometry/penultimate/"


def test_logits_come_from_the_same_forward_pass():
    calls = []

    def forward(model: nn.Module, inputs: Tensor) -> Tensor:
        calls.append(len(inputs))
        return model(inputs)

    model, probe = network(), probe_set()
    measured = values(monitor(markers="all", forward=forward).measure(model, step=1))
    # At the first measurement also eight points to find the layer, and two alone: does the batch matter?
    assert sum(calls) == 8 + len(probe) + 2
    with torch.no_grad():
        logits = model.eval()(torch.stack([probe.dataset[i][0] for i in probe.indices]))
    assert measured[PROBE_KEY + "accuracy"] == (logits.argmax(1) == probe.labels).double().mean().item()
    p = logits.double().softmax(1)
    assert measured[PROBE_KEY + "entropy"] == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-6)


class Encoder(nn.Module):
    """Gives no logits, as encoders trained without labels do."""

    def __init__(self, output) -> None:
        super().__init__()
        self.head = nn.Linear(6, 16)
        self.output = output

    def forward(self, x: Tensor):
        return self.output(self.head(x))


@pytest.mark.parametrize("output", [lambda z: {"embedding": z}, lambda z: z[:, :5], lambda z: None])
def test_a_model_without_logits_has_the_rest_of_the_geometry(output):
    watcher, model = monitor(), Encoder(output)
    with pytest.warns(gm.GeomonitorWarning, match="no logits") as told:
        measured = values(watcher.measure(model, step=1))
    assert len(told) == 1
    missing = [name for name, value in measured.items() if math.isnan(value)]
    assert missing == [PROBE_KEY + "accuracy"]
    watcher.measure(model, step=2)  # told once: warnings are errors here
    values(monitor(markers=["dimension", "nc1"]).measure(model, step=1))  # not asked for, not told


def test_logits_that_are_nan_leave_the_features_alone():
    model = network()
    with torch.no_grad():
        model[4].bias[0] = math.nan
    with pytest.warns(gm.GeomonitorWarning, match="logits are NaN: logits must be finite"):
        measured = values(monitor().measure(model, step=1))
    assert math.isnan(measured[PROBE_KEY + "accuracy"])
    assert math.isfinite(measured[PROBE_KEY + "participation_ratio"])


def test_the_head_is_found_where_the_layer_feeds_it():
    model, probe = network().eval(), probe_set()
    measured = values(monitor(markers="all", layers={"head": "4:input", "hidden": "2:output"}).measure(model, step=1))
    with torch.no_grad():
        x = model[:4](torch.stack([probe.dataset[i][0] for i in probe.indices]))
    nc3 = gm.neural_collapse(x, probe.labels, weight=model[4].weight[3:7]).nc3
    assert measured["geometry/head/nc3"] == pytest.approx(nc3.item(), rel=1e-9)
    assert 0 <= measured["geometry/head/nc4"] <= 1
    assert math.isnan(measured["geometry/hidden/nc3"])
    assert math.isnan(measured["geometry/hidden/nc4"])


def test_drift_starts_at_zero_and_survives_a_checkpoint(tmp_path):
    first, changed = network(), network()
    with torch.no_grad():
        changed[0].weight.mul_(torch.linspace(0.1, 3, 32)[:, None])
    watcher = monitor(markers=["dimension", "drift"])
    assert values(watcher.measure(first, step=1))[PROBE_KEY + "drift"] == pytest.approx(0, abs=1e-12)
    torch.save(watcher.state_dict(), tmp_path / "state.pt")
    moved = values(watcher.measure(changed, step=2))[PROBE_KEY + "drift"]
    assert moved > 0.01
    restored = monitor(markers=["dimension", "drift"])
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert values(restored.measure(changed, step=2))[PROBE_KEY + "drift"] == moved
    assert values(restored.measure(first, step=3))[PROBE_KEY + "drift"] == pytest.approx(0, abs=1e-12)
    restored.reset()  # a new run in the same object
    assert values(restored.measure(changed, step=1))[PROBE_KEY + "drift"] == pytest.approx(0, abs=1e-12)


def test_drift_to_the_best_measurement_or_to_a_saved_one():
    first, changed = network(), network()
    with torch.no_grad():
        changed[0].weight.mul_(torch.linspace(0.1, 3, 32)[:, None])
    watcher = monitor(markers=["dimension", "drift"])
    watcher.measure(first, step=1)
    watcher.measure(changed, step=2)
    watcher.set_reference()
    assert values(watcher.measure(changed, step=3))[PROBE_KEY + "drift"] == pytest.approx(0, abs=1e-12)
    other = monitor(markers=["dimension", "drift"])
    other.set_reference(watcher.state_dict()["references"])
    assert values(other.measure(first, step=1))[PROBE_KEY + "drift"] > 0.01


def image_monitor(**options) -> gm.GeometryMonitor:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % CLASSES
    pictures = torch.randn(CLASSES, 1, 8, 8, generator=stream)[labels] + torch.randn(80, 1, 8, 8, generator=stream)
    probe = gm.ProbeSet.from_dataset(TensorDataset(pictures, labels), per_class=PER_CLASS)
    return gm.GeometryMonitor(
        probe, **grouped(**{"directions": 40, "on_error": "raise", "markers": ["dimension"]} | options)
    )


def image_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def _shifted_accuracies(rank: int = 0) -> dict[str, float]:
    shifts = {"noise": None, "none": lambda x: x, "upside_down": lambda x: x.flip(2)}
    options = {"shifts": shifts, "markers": ["dimension", "accuracy", "accuracy_under_blur"], "batch_size": 17}
    return values(image_monitor(**options).measure(image_network(), step=1))


def test_accuracy_under_shifts():
    measured = _shifted_accuracies()
    names = [name.removeprefix(PROBE_KEY) for name in measured]
    shifted = [f"accuracy_under_{name}" for name in ("blur", "noise", "none", "upside_down")]
    assert names == ["dimension", "accuracy", *shifted, "nonfinite_rows", "alarm", "notice", "judged"]
    assert measured[PROBE_KEY + "accuracy_under_none"] == measured[PROBE_KEY + "accuracy"]
    assert _shifted_accuracies() == measured
    assert all(result == pytest.approx(measured, rel=1e-6) for result in in_processes(_shifted_accuracies))


def test_every_built_in_shift_by_name():
    names = ("noise", "blur", "brightness", "contrast", "rotation")
    measured = image_monitor(shifts=names).measure(image_network(), step=1)
    found = {record.marker: record.value for record in measured}
    assert all(0 <= found[f"accuracy_under_{name}"] <= 1 for name in names)


def test_shifts_of_what_is_no_image_are_refused_at_once():
    state = torch.get_rng_state()
    with pytest.raises(gm.InputError, match=r"'blur' needs float images"):
        monitor(shifts=["blur"])
    with pytest.raises(gm.InputError, match="built-in shifts are"):
        image_monitor(shifts=["fog"])
    with pytest.raises(gm.InputError, match="did you mean 'accuracy_under_blur'"):
        image_monitor(markers=["dimension", "accuracy_under_blurr"])
    assert torch.equal(torch.get_rng_state(), state)


def test_shifts_are_part_of_the_protocol():
    saved = image_monitor(shifts=["noise"])
    with pytest.raises(gm.InputError, match="shifts"):
        image_monitor(shifts=["blur"]).load_state_dict(saved.state_dict())


@pytest.mark.parametrize("group", ["default", "paper", "all"])
def test_groups_by_name(group):
    assert monitor(markers=group).markers == gm.MARKER_GROUPS[group]


def test_markers_of_the_logits_alone():
    measured = monitor(markers=["accuracy", "margin"], watch=["accuracy"]).measure(network(), step=1)
    assert [record.marker for record in measured][:5] == ["accuracy", "margin", "nonfinite_rows", "alarm", "notice"]
    assert 0 <= measured[0].value <= 1


def _logits_on_one_process_only(rank: int) -> dict[str, float]:
    import warnings

    def forward(model: nn.Module, inputs: Tensor) -> Tensor:
        return model(inputs) if rank else model(inputs)[:3]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeomonitorWarning)
        return values(monitor(markers=["accuracy", "nc1"], watch=["nc1"], forward=forward).measure(network(), step=1))


def test_logits_in_one_process_only_are_logits_in_none_and_nobody_waits():
    for result in in_processes(_logits_on_one_process_only):
        assert math.isnan(result[PROBE_KEY + "accuracy"])
        assert math.isfinite(result[PROBE_KEY + "nc1"])
