"""What all adapters share: options, state in a file, stopping, and finding out who calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.adapter import Adapter, caller, first_in, monitor_of, require_one_of_a_name
from tests.test_monitor import low_from, network, probe_set

OPTIONS: dict[str, Any] = {"markers": ["dimension", "nc1"], "geometry": {"directions": 10}, "on_error": "raise"}


def adapter(**options: Any) -> Adapter:
    return Adapter(probe_set(), **{**OPTIONS, **options})


def steps(adapter: Adapter) -> list[int]:
    return adapter.monitor.history.series("penultimate", "dimension").steps.tolist()


def train(adapter: Adapter, epochs: range) -> None:
    model = network()
    adapter.begun = False
    for epoch in epochs:
        adapter.begin(model, step=5 * epoch)
        adapter.measure_after_epoch(model, step=5 * (epoch + 1), epoch=epoch)
        adapter.save(adapter.directory)


def test_state_in_a_file(tmp_path):
    train(adapter(directory=tmp_path), range(2))
    second = adapter(directory=tmp_path)
    train(second, range(2, 3))
    assert steps(second) == [5, 10, 15]
    third = adapter(directory=tmp_path)
    train(third, range(1))  # from the start: the file is of another run
    assert steps(third) == [5]
    with pytest.raises(gm.InputError, match="protocol"):
        train(adapter(directory=tmp_path, geometry={"directions": 11}), range(1, 2))


@pytest.mark.parametrize("name", ["", "own"])
def test_another_run_in_a_directory_leaves_the_state_of_the_first(tmp_path, name):
    first, second = (adapter(directory=tmp_path, name=name) for _ in range(2))
    file = "geometry_own.pt" if name else "geometry.pt"
    train(first, range(2))
    saved = (tmp_path / file).read_bytes()
    train(second, range(1))
    own = tmp_path / first.monitor.history.run_id
    kinds = {".csv", ".json", ".pt"}
    assert {path.suffix for path in own.iterdir()} == kinds
    assert (own / file).read_bytes() == saved
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == kinds
    assert steps(second) == [5]
    third = adapter(directory=own, name=name)  # the first run goes on where its files are
    train(third, range(2, 3))
    assert steps(third) == [5, 10, 15]
    fourth = adapter(directory=tmp_path, name=name)
    train(fourth, range(1, 2))
    assert steps(fourth) == [5, 10]  # and the second one, where it was
    assert fourth.monitor.history.run_id == second.monitor.history.run_id


@pytest.mark.parametrize("measures", [True, False])
def test_a_run_that_still_trains_saves_its_state_where_its_history_was_moved(tmp_path, measures):
    first, second = (adapter(directory=tmp_path) for _ in range(2))
    train(first, range(2))
    train(second, range(1))
    saved = (tmp_path / "geometry.pt").read_bytes()
    if measures:
        with pytest.warns(gm.GeomonitorWarning, match="another run has taken"):
            first.measure(network(), step=15, epoch=2)
    first.save(tmp_path)
    assert (tmp_path / "geometry.pt").read_bytes() == saved
    own = tmp_path / first.monitor.history.run_id
    third = adapter(directory=own)
    train(third, range(3, 4))
    assert steps(third) == [5, 10, *([15] if measures else []), 20]
    first.save(tmp_path / "checkpoint-10")  # the folder of a checkpoint is no such place
    assert (tmp_path / "checkpoint-10" / "geometry.pt").is_file()


def test_a_run_whose_state_was_moved_is_told_where_it_is(tmp_path):
    train(adapter(directory=tmp_path), range(2))
    other = adapter(directory=tmp_path)
    other.begin(network(), step=0)  # and ends before it saves a state
    moved = next(tmp_path.glob("*/geometry.pt"))
    again = adapter(directory=tmp_path)
    with pytest.warns(gm.GeomonitorWarning, match=r"without the state.*put it back from .*") as caught:
        train(again, range(2, 3))
    assert str(moved.parent) in str(caught[0].message)


def test_a_run_that_goes_on_without_a_state_is_warned_of(tmp_path):
    first = adapter(directory=tmp_path)
    with pytest.warns(gm.GeomonitorWarning, match=r"goes on at step 10 without the state .* geometry\.pt is not in"):
        train(first, range(2, 3))
    assert steps(first) == [15]


@pytest.mark.parametrize("stop", [True, False])
def test_it_stops_on_a_decline_if_it_was_asked_to(stop, capsys):
    own = adapter(panel=gm.Panel(("dimension",), low_from(10)), stop_on_decline=stop)
    with pytest.warns(gm.GeometryDeclineWarning):
        train(own, range(3))
    assert own.stopping is stop
    assert (f"geometry early stopping: {own.monitor.status.headline}\n" in capsys.readouterr().err) is stop


def test_columns_are_the_default_markers_or_those_that_were_chosen():
    model = network()
    keys = [f"geometry/penultimate/{marker}" for marker in ("dimension", "nc1", "alarm")]
    assert adapter().columns(model) == adapter().keys(model) == keys
    everything = adapter(markers="all")
    assert len(everything.columns(model)) < len(everything.keys(model))
    assert adapter(name="own").keys(model)[0] == "geometry/own/penultimate/dimension"


@pytest.mark.parametrize(
    ("key", "evaluates", "message"),
    [
        ("geometry/penultimate/dimensions", True, "is not measured. Measured are geometry/penultimate/dimension"),
        ("eval_geometry/fc/nc1", True, "'geometry/fc/nc1' is not measured"),
        ("geometry/penultimate/nc1", False, "has no evaluation"),
    ],
)
def test_a_key_that_is_not_measured_is_refused(key, evaluates, message):
    with pytest.raises(gm.InputError, match=message):
        adapter().require_measured(network(), key, evaluates, prefix="eval_")


@pytest.mark.parametrize("key", [None, "loss", "geometry/penultimate/nc1", "eval_geometry/penultimate/alarm"])
def test_keys_that_are_measured_and_those_of_others_are_not(key):
    adapter().require_measured(network(), key, True, prefix="eval_")


def test_two_of_a_name_are_refused_and_others_are_passed_over():
    require_one_of_a_name([adapter(), adapter(name="other"), object(), None])
    with pytest.raises(gm.InputError, match="two geometry callbacks have the name 'a'"):
        require_one_of_a_name([adapter(), adapter(name="a"), adapter(name="a")])


def test_a_ready_made_monitor_takes_no_options_and_lists_of_yaml_count_as_tuples():
    monitor = gm.GeometryMonitor(probe_set())
    assert monitor_of(monitor, shifts=[], batch_size=128) is monitor
    with pytest.raises(gm.InputError, match=r"give \['batch_size', 'shifts'\] to the GeometryMonitor"):
        monitor_of(monitor, shifts=["noise"], batch_size=3)
    with pytest.raises(gm.InputError, match="takes a ProbeSet; a ValidationProbe works with Lightning"):
        Adapter(gm.ValidationProbe(classes=3, per_class=5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"stop_on_decline": "no"}, {"directory": 3}, {"directory": ""}, {"every_n_epochs": 0}, {"layers": []}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(gm.InputError):
        adapter(**options).keys(network())


def test_the_first_in_a_list_also_while_it_is_read():
    called: list[str] = []
    callbacks = ["a", "b", "own", "c"]
    for each in callbacks:
        called.append(each)
        if each == "own":
            first_in(callbacks, callbacks[2])
    assert callbacks == ["own", "a", "b", "c"]
    assert called == ["a", "b", "own", "c"]


def test_who_calls_is_found_through_other_objects():
    class Trainer:
        def train(self, resume_from: str, callback: Any) -> Any:
            return Handler().call(callback)

    class Handler:
        def call(self, callback: Any) -> Any:
            return callback()

    found = Trainer().train("checkpoint", lambda: caller(Trainer))
    assert isinstance(found["self"], Trainer)
    assert found["resume_from"] == "checkpoint"
    with pytest.raises(gm.InputError, match="works in a Trainer only"):
        caller(Trainer)


def test_a_model_under_the_autocast_of_another_library_computes_in_its_own_dtype():
    model = network()
    plain = gm.GeometryMonitor(probe_set(), **OPTIONS).measure(model, step=1)
    model._original_forward = original = model.forward

    def half(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return original(x)

    model.forward = half
    own = gm.GeometryMonitor(probe_set(), **OPTIONS).measure(model, step=1)
    assert [r.value for r in own if r.layer] == [r.value for r in plain if r.layer]
    assert model.forward is half


def test_a_model_may_name_its_head():
    class Foreign(nn.Module):
        head_path = "head"

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv1d(1, 8, 6), nn.Flatten(0, -1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x[:, None]).squeeze(-1)).reshape(len(x), -1)

    monitor = gm.GeometryMonitor(probe_set(), markers=["participation_ratio"], panel=None, on_error="raise")
    assert monitor.measure(Foreign(), step=1)[0].layer == "penultimate"
