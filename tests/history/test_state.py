"""A history in a checkpoint: every digit, few bytes, without the history if that is requested; growth."""

from __future__ import annotations

import io
import math
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor import GeometryMonitor, GeomonitorWarning, History, InputError, MonitoredRun, ProbeSet, Record

NAN = math.nan


def as_text(history: History) -> list[str]:
    return [repr(record) for record in history]  # NaN equals NaN as text


def saved(state: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def through_a_checkpoint(history: History, **options: bool) -> History:
    restored = History()
    restored.load_state_dict(torch.load(saved(history.state_dict(**options)), weights_only=True))
    return restored


def measurement(step: int, markers: int = 60, layers: int = 12, *, with_errors: int = 60) -> list[Record]:
    numbers = np.random.default_rng(step).random((layers, markers, 3))
    epoch, now = step // 4, 1.7e9 + step / 7
    records = []
    for layer, of_layer in enumerate(numbers):
        for marker, (value, *both) in enumerate(of_layer.tolist()):
            error, change = both if marker < with_errors else (NAN, NAN)
            records.append(Record(step, epoch, f"layer{layer}", f"marker{marker}", value, error, now, change))
    return records


@pytest.mark.parametrize(
    "records",
    [
        [],
        [Record(0, None, "", "seconds", 1.0)],
        measurement(3, 5, 2) + measurement(7, 5, 2),
        measurement(7, 5, 2) + measurement(3, 5, 2),  # a part of a run is repeated
        measurement(3, 5, 2)[:7] + measurement(7, 5, 2)[2:] + measurement(9, 4, 3),  # other layers from then on
        [Record(2**62, 2**40, "a\nb\0", "\ud800", -0.0, 5e-324, math.inf, -math.inf)],
        [Record(1, 0, "fc", "m", 1.0, time=1.0), Record(1, 0, "fc", "n", 1.0), Record(1, 1, "fc", "o", 1.0)],
    ],
    ids=["none", "one", "in order", "out of order", "other columns", "extremes", "other times and epochs"],
)
def test_every_record_comes_back_in_its_place(records):
    assert as_text(through_a_checkpoint(History(records))) == list(map(repr, records))


def test_what_was_restored_goes_on_and_replaces():
    history = through_a_checkpoint(History(measurement(3, 5, 2)))
    changed = measurement(3, 5, 2)[4]._replace(value=9.0)
    history.append([changed, *measurement(4, 5, 2)])
    again = through_a_checkpoint(history)
    assert again.series("layer0", "marker4").values.tolist() == [9.0, measurement(4, 5, 2)[4].value]
    assert len(again) == 20
    assert [record.step for record in again.latest()] == [4] * 10


def test_the_list_of_records_of_an_older_version_is_read():
    restored = History()
    restored.load_state_dict({"records": [list(record) for record in measurement(3, 5, 2)]})
    assert as_text(restored) == list(map(repr, measurement(3, 5, 2)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("values", torch.zeros(3)), ("columns", torch.zeros(20, 2, dtype=torch.int32) + 9), ("layers", None),
        ("layout", torch.tensor([5, 6])), ("steps", "x"), ("markers", []), ("has_change_errors", torch.zeros(1)),
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused_and_changes_nothing(name, value):
    history = History(measurement(3, 5, 2))
    with pytest.raises(InputError, match="history in this state is damaged"):
        history.load_state_dict({**history.state_dict(), name: value})
    assert as_text(history) == list(map(repr, measurement(3, 5, 2)))


@pytest.mark.parametrize(
    "record",
    [Record(2**63, 0, "a", "b", 1.0), Record(1, 10**40, "a", "b", 1.0), Record(1.5, 0, "a", "b", 1.0),
     Record(1, 0, "a", "b", "x"), Record(1, math.nan, "a", "b", 1.0)],
)  # fmt: skip
def test_a_record_that_no_file_could_hold_is_refused_whole(record):
    history = History(measurement(3, 1, 1))
    with pytest.raises(InputError, match="record"):
        history.append([record])
    assert len(history) == len(history.series("layer0", "marker0").values) == 1
    assert not history.series("a", "b").values.size


class TestGrowth:
    @pytest.mark.parametrize(("with_errors", "megabytes"), [(0, 3.0), (14, 4.4), (60, 8.8)])
    def test_a_checkpoint_of_360000_records(self, with_errors, megabytes):
        history = History()
        for step in range(500):
            history.append(measurement(step, with_errors=with_errors))
        assert len(history) == 360_000
        file = saved(history.state_dict())
        assert len(file.getbuffer()) < megabytes * 1e6
        seconds = []
        for _ in range(3):
            file.seek(0)
            started, restored = time.process_time(), History()
            restored.load_state_dict(torch.load(file, weights_only=True))
            seconds.append(time.process_time() - started)
        assert sorted(seconds)[1] < 0.5  # 0.05 on an idle core; the list of records took 4 to 10 s
        for name in ("marker0", "marker59"):
            for found, expected in zip(restored.series("layer3", name), history.series("layer3", name), strict=True):
                np.testing.assert_array_equal(found, expected)

    def test_the_layout_of_measurements_that_alternate_is_stored_twice_at_most(self):
        history = History()
        for step in range(1000):  # markers, and at every second measurement the alarm without a time
            history.append(measurement(step, 10, 2, with_errors=0)[: 20 - step % 2])
            history.append([Record(step, step // 4, "layer0", "alarm", 0.0)])
        assert len(history.state_dict()["layouts"]) == 20 + 19 + 1
        assert len(saved(history.state_dict()).getbuffer()) < 9 * len(history) + 28 * 2000 + 10_000

    def test_appending_and_reading_cost_the_same_at_any_length(self):
        history, seconds = History(), []
        for step in range(1500):
            started = time.process_time()
            history.append(measurement_of_constants(step))
            history.latest()
            seconds.append(time.process_time() - started)
        assert np.median(seconds[-100:]) < 3 * np.median(seconds[:100])

    def test_steps_that_come_in_the_wrong_order_do_not_cost_more(self):
        started = time.process_time()
        history = History(Record(step, None, "fc", "dimension", 1.0) for step in range(100_000, 0, -1))
        assert (np.diff(history.series("fc", "dimension").steps) == 1).all()
        assert time.process_time() - started < 5


def measurement_of_constants(step: int) -> list[Record]:
    return [Record(step, step, "fc", f"marker{n}", 1.0, time=1.0) for n in range(60)]


class TestWithoutTheHistory:
    def test_the_state_has_the_latest_record_of_each_marker(self, tmp_path):
        history = History([*measurement(1, 3, 2), *measurement(2, 3, 2)])
        assert as_text(through_a_checkpoint(history, whole=False)) == list(map(repr, measurement(2, 3, 2)))

    def test_the_rest_is_read_from_the_file_up_to_the_checkpoint(self, tmp_path):
        path = tmp_path / "geometry.csv"
        history = History()
        history.open(path, {"seed": 0})
        for step in (1, 2):
            history.append(measurement(step, 3, 2))
        resumed = through_a_checkpoint(history, whole=False)
        history.append(measurement(3, 3, 2))  # after the checkpoint
        resumed.open(path, {"seed": 0})
        expected = list(map(repr, measurement(1, 3, 2) + measurement(2, 3, 2)))
        assert as_text(resumed) == expected == as_text(History.load(path))
        assert [file.name for file in tmp_path.glob("*.csv")] == ["geometry.csv"]

    def test_the_file_is_found_if_another_run_has_moved_it(self, tmp_path):
        path = tmp_path / "geometry.csv"
        history = History()
        history.open(path, {"seed": 0})
        for step in (1, 2):
            history.append(measurement(step, 3, 2))
        (newer := History(measurement(9, 3, 2))).open(path, {"seed": 0})
        for whole in (False, True):
            resumed = through_a_checkpoint(history, whole=whole)
            resumed.open(path, {"seed": 0})
            assert resumed.series("layer0", "marker0").steps.tolist() == [1, 2]
            assert resumed.path == tmp_path / history.run_id / "geometry.csv"  # and goes on there
            assert as_text(History.load(path)) == as_text(newer)

    def test_a_file_that_is_gone_is_logged(self, tmp_path):
        resumed = through_a_checkpoint(History(measurement(2, 3, 2)), whole=False)
        with pytest.warns(GeomonitorWarning, match="neither in the checkpoint .* its curves begin at step 2"):
            resumed.open(tmp_path / "geometry.csv")
        assert as_text(resumed) == list(map(repr, measurement(2, 3, 2)))

    def test_a_state_loaded_into_an_open_history_reads_its_file(self, tmp_path):
        history = History()
        history.open(tmp_path / "h.csv")
        for step in (1, 2):
            history.append(measurement(step, 3, 2))
        history.load_state_dict(history.state_dict(whole=False))
        history.append(measurement(3, 3, 2))
        assert History.load(tmp_path / "h.csv").series("layer0", "marker0").steps.tolist() == [1, 2, 3]

    @pytest.mark.parametrize("whole", [True, False])
    def test_a_run_goes_on_as_if_it_had_not_stopped(self, tmp_path, whole):
        torch.manual_seed(0)
        probe = ProbeSet.from_dataset(TensorDataset(torch.randn(80, 6), torch.arange(80) % 4), per_class=10)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))

        def run() -> MonitoredRun:
            monitor = GeometryMonitor(probe, markers=["rankme", "nc1"], panel=gm.Panel(("rankme",)))
            return MonitoredRun(monitor, checkpoint_history=whole)

        first, second = run(), run()
        first.start(model, tmp_path)
        for epoch in range(6):
            first.measure(model, step=10 * (epoch + 1), epoch=epoch)
        state = torch.load(saved(first.state_dict()), weights_only=True)
        assert (len(saved(state["history"]["values"]).getbuffer()) < 2000) or whole
        second.load_state_dict(state)
        second.start(model, tmp_path, step=60)
        second.measure(model, step=70, epoch=6)
        series = History.load(tmp_path / "geometry.csv").series("penultimate", "rankme")
        assert series.steps.tolist() == [10, 20, 30, 40, 50, 60, 70]
        assert second.monitor.history.measurements == 7

    def test_the_option_is_checked(self):
        probe = ProbeSet.from_dataset(TensorDataset(torch.randn(80, 6), torch.arange(80) % 4), per_class=10)
        with pytest.raises(InputError, match="checkpoint_history is True or False"):
            MonitoredRun(GeometryMonitor(probe), checkpoint_history="no")
