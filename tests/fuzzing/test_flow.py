"""Probe sets, capture, histories, detectors and whole measurements on whatever comes."""

from __future__ import annotations

import io
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.alarms.phrases import numbers
from tests.fuzzing.clouds import DTYPES, PROFILE, measured

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
NAMES = st.text(st.characters(exclude_characters="\0"), max_size=8)
RECORDS = st.lists(
    st.builds(
        gm.Record, st.integers(0, 2**62), st.none() | st.integers(0, 10**6), NAMES, NAMES, FLOATS, FLOATS, FLOATS
    ),
    max_size=6,
)


def as_text(history: gm.History) -> list[str]:
    return [repr(record) for record in history]


def names_survive(records: list[gm.Record]) -> bool:
    """Lone surrogates are no text that a file could hold; they come back escaped."""
    return all(
        (record.layer + record.marker).isprintable() or _encodes(record.layer + record.marker) for record in records
    )


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def through_a_checkpoint(state: dict[str, object]) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@PROFILE
@given(RECORDS, st.integers(0, 400))
def test_a_history_comes_back_from_file_and_state_also_where_the_file_was_cut(records, cut):
    history, restored = gm.History(), gm.History()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "h.csv")
        history.open(path)
        history.append(records[:2])
        history.append(records[2:])
        loaded = gm.History.load(path)
        assert len(loaded) == len(history) or not names_survive(records)
        if names_survive(records):
            assert as_text(loaded) == as_text(gm.History(records))
        path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - cut)])
        part = measured(gm.History.load, path)
        if part is not None and names_survive(records) and len({r[:1] + r[2:4] for r in records}) == len(records):
            assert as_text(part) == as_text(history)[: len(part)]
    restored.load_state_dict(through_a_checkpoint(history.state_dict()))
    assert as_text(restored) == as_text(history)
    for record in records:
        series = history.series(record.layer, record.marker)
        assert isinstance(series, gm.Series)
        assert (np.diff(series.steps) > 0).all()
        assert record.key.startswith("geometry")


@PROFILE
@given(st.binary(max_size=60), st.booleans(), st.text('0123456789,\r\n"aenif-.', max_size=60))
def test_a_file_of_anything_is_a_history_or_refused(raw, with_header, text):
    header = ",".join(gm.Record._fields).encode() + b"\r\n" if with_header else b""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(header + text.encode() + raw)
        found = measured(gm.History.load, file.name)
    assert found is None or isinstance(found, gm.History)


VALUES = st.lists(st.floats(-1e12, 1e12) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0]), max_size=24)


@PROFILE
@given(VALUES, FLOATS, st.floats(0.01, 0.99), st.floats(0, 10), st.integers(1, 5), st.integers(1, 4))
def test_a_detector_judges_any_series(values, error, drop, sigmas, warmup, patience):
    detector = gm.DETECTORS["drop_from_reference"](drop, sigmas, warmup, patience)
    assert isinstance(detector, gm.DropFromReference)

    def judged(values: np.ndarray, error: float) -> gm.Verdict:
        steps = np.arange(len(values))
        return detector(gm.Series("fc", "d", steps, steps.astype(float), values, np.full(len(values), error)))

    series = np.array(values, dtype=float)
    verdict = measured(judged, series, error)
    assert isinstance(verdict, gm.Verdict)
    assert verdict.declined == (verdict.checks >= patience)
    if verdict.declined:
        assert verdict.value < verdict.reference * (1 - drop) * (1 + 1e-12)
        assert verdict.change < 0 < verdict.sigmas
        assert "fell by" in numbers(verdict)
    if (np.abs(series[np.isfinite(series)]) > 1e-300).all():  # the smallest number stands in for 0, at any scale
        scaled = judged(series * 2.0**-20, error * 2.0**-20)
        found = (scaled.declined, scaled.checks, scaled.since_step)
        assert found == (verdict.declined, verdict.checks, verdict.since_step)
    assert not judged(np.sort(series), abs(error)).declined  # what only rises has not declined


@PROFILE
@given(VALUES, FLOATS, st.sampled_from([gm.Cusum, gm.Trend]), st.sampled_from(["lower", "higher", "either"]))
def test_the_other_detectors_judge_any_series(values, error, kind, worse):
    steps = np.arange(len(values))
    series = gm.Series(
        "fc", "d", steps, steps.astype(float), np.array(values, dtype=float), np.full(len(values), error)
    )
    runs = [gm.History(gm.Record(n, n, "fc", "d", float(level)) for n in range(24)) for level in (1.0, 2.0, 1.5)]
    for detector in (kind(worse=worse), gm.ReferenceRuns(runs, worse=worse)):
        verdict = detector(series)
        assert verdict.declined == bool(detector.declines(series)[-1:].any())
        assert not verdict.declined or verdict.sigmas > 0


@PROFILE
@given(st.integers(-2, 5) | st.lists(st.integers(-3, 9), max_size=5), st.integers(-1, 5), st.integers(-1, 3))
def test_a_validation_probe_has_classes_or_is_refused(classes, per_class, seed):
    probe = measured(gm.ValidationProbe, classes=classes, per_class=per_class, seed=seed)
    assert probe is None or (len(set(probe.classes)) >= 2 and probe.per_class >= 2)


@PROFILE
@given(FLOATS, FLOATS, st.integers(-2, 5), st.integers(-2, 5))
def test_options_of_a_detector_make_sense_or_are_refused(drop, sigmas, warmup, patience):
    good = 0 < drop < 1 and 0 <= sigmas < math.inf and warmup >= 1 and patience >= 1
    assert (measured(gm.DropFromReference, drop, sigmas, warmup, patience) is not None) == good


@PROFILE
@given(
    st.lists(st.integers(-3, 4), max_size=30), st.integers(0, 5),
    st.none() | st.integers(-1, 5) | st.lists(st.integers(-3, 5), max_size=4), st.integers(-1, 2**40), st.booleans(),
)  # fmt: skip
def test_a_probe_set_is_balanced_and_repeatable_or_refused(labels, per_class, classes, seed, allow_fewer):
    dataset = TensorDataset(torch.arange(len(labels)).float(), torch.tensor(labels, dtype=torch.int64))
    options = {"per_class": per_class, "classes": classes, "seed": seed, "allow_fewer": allow_fewer}
    probe, again = (measured(gm.ProbeSet.from_dataset, dataset, **options) for _ in range(2))
    if probe is None:
        return
    assert probe.labels.tolist() == [label for label in probe.classes for _ in range(probe.per_class)]
    assert [labels[i] for i in probe.indices] == probe.labels.tolist()
    assert len(set(probe.indices.tolist())) == len(probe)
    assert len(probe.classes) >= 2
    assert probe.per_class == per_class or (allow_fewer and probe.per_class < per_class)
    assert probe.fingerprint == again.fingerprint
    assert sorted(torch.cat([batch.ids for batch in probe.loader(4)]).tolist()) == list(range(len(probe)))


@PROFILE
@given(st.lists(st.integers(0, 3), max_size=60), st.integers(-1, 15), st.sampled_from(["zero", "nan", "fine"]))
def test_a_transfer_probe_gives_shares_or_is_refused(labels, per_class, fault):
    inputs = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    if fault != "fine":
        inputs[: len(labels) // 2] = 0 if fault == "zero" else math.nan
    truth = measured(gm.TransferProbe.from_dataset, TensorDataset(inputs, torch.tensor(labels)), per_class=per_class)
    if truth is None:
        return
    known = gm.ProbeSet.from_dataset(TensorDataset(torch.randn(12, 4), torch.arange(12) % 3), per_class=4)
    monitor = gm.GeometryMonitor(known, markers=["mean_norm"], panel=None, truth=truth)
    for record in measured(monitor.measure, nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), step=1):
        if record.marker.startswith("transfer") or record.marker == "knn_accuracy":
            assert math.isnan(record.value) or 0 <= record.value <= 1


class Gives(nn.Module):
    """Gives a tensor, whatever goes in."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.tensor = tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.tensor)


@PROFILE
@given(
    st.lists(st.integers(1, 4), min_size=0, max_size=6), st.sampled_from([*DTYPES, torch.int64, torch.bool]),
    st.sampled_from(["auto", "mean", "first", "last", "flatten"]),
    st.none() | st.lists(st.booleans(), min_size=1, max_size=4),
)  # fmt: skip
def test_captured_gives_a_matrix_or_says_why_not(shape, dtype, pool, mask_row):
    model = Gives(torch.ones(shape).to(dtype))
    mask = None if mask_row is None else torch.tensor([mask_row] * (shape[0] if shape else 1))

    def features() -> torch.Tensor | None:
        try:
            with gm.captured(model, {"a": "inner"}, pool=pool, mask=mask) as found:
                model(torch.zeros(1))
        except gm.MeasurementError as error:
            return None if issubclass(type(error), gm.GeomonitorError) else torch.zeros(())
        return found["a"]

    matrix = measured(features)
    if matrix is not None:
        assert matrix.shape[:1] == tuple(shape[:1])
        assert matrix.ndim == 2
        assert bool((matrix == 1).all())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@PROFILE
@given(
    st.integers(0, 2**31), st.integers(-12, 12), st.sampled_from(DTYPES), st.sampled_from(["none", "zero", "nan"]),
    st.lists(st.sampled_from(gm.MARKER_GROUPS["all"]), min_size=1, max_size=2),
)  # fmt: skip
def test_a_measurement_never_ends_a_run(seed, exponent, dtype, fault, markers):
    torch.manual_seed(seed)
    data = TensorDataset(torch.randn(18, 4).to(dtype), torch.arange(18) % 3)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        model[0].weight.mul_(10.0**exponent)
        if fault != "none":
            model[0].weight[:3] = 0 if fault == "zero" else math.nan
    assert set(markers) <= set(gm.MARKERS)
    monitor = gm.GeometryMonitor(
        gm.ProbeSet.from_dataset(data, per_class=4),
        markers=markers,
        panel=gm.Panel(markers[:1]),
        geometry={"directions": 4},
        batch_size=5,
    )
    records = measured(monitor.measure, model, step=1, epoch=0)
    assert [record.marker for record in records] == [
        *dict.fromkeys(markers), "nonfinite_rows", "alarm", "notice", "judged", "seconds", "overhead"
    ]  # fmt: skip
    restored = gm.GeometryMonitor(
        monitor.probe, markers=markers, panel=gm.Panel(markers[:1]), geometry={"directions": 4}
    )
    restored.load_state_dict(monitor.state_dict())
    assert as_text(restored.history) == as_text(monitor.history)


ANYTHING = st.one_of(
    st.integers(-3, 3), st.floats(), st.booleans(), st.none(), st.text(max_size=3), st.just(np.int64(2)),
    st.just(np.float32(0.5)), st.lists(st.integers(0, 3), max_size=2),
)  # fmt: skip


@PROFILE
@given(st.sampled_from(["directions", "dichotomies", "mode", "pairs", "seed", "ridge"]), ANYTHING)
def test_options_of_the_geometry_are_plain_values_or_refused(name, value):
    options = measured(gm.GeometryOptions, **{name: value})
    if options is not None:
        assert options == gm.GeometryOptions.of(options.as_dict())
        assert all(type(v) in (int, float, str, type(None)) for v in options.as_dict().values())


@PROFILE
@given(
    st.sampled_from(["every_n_epochs", "every_n_steps", "name", "allow_protocol_change", "on_alarm"]), ANYTHING,
    st.lists(st.integers(0, 3), max_size=8),
)  # fmt: skip
def test_a_run_takes_an_option_or_refuses_it_and_counts(name, value, steps):
    data = TensorDataset(torch.randn(12, 4), torch.arange(12) % 3)
    monitor = gm.GeometryMonitor(gm.ProbeSet.from_dataset(data, per_class=2), markers=["mean_norm"], panel=None)
    run = measured(gm.MonitoredRun, monitor, **{name: value})
    if run is None:
        return
    run.start(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    at, due = 0, []
    for step in steps:  # a batch of any number of optimiser steps
        at += step
        due += [at] if run.due_after_batch(at) else []
    every = run.every_n_steps
    multiples = 0 if every is None else at // every
    assert len(due) <= multiples
    assert every is not None or not due


@PROFILE
@given(
    st.lists(st.lists(st.integers(-2, 3), max_size=7), max_size=12),
    st.integers(1, 6),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_points_that_are_tokens_have_labels_and_each_comes_once(labels, per_class, seed, allow_fewer):
    items = [(torch.arange(len(row)), torch.tensor(row, dtype=torch.int64)) for row in labels]
    probe = measured(gm.TokenProbe.from_dataset, items, per_class=per_class, seed=seed, allow_fewer=allow_fewer)
    if probe is None:
        return
    chosen = list(zip(probe.indices.tolist(), probe.places.tolist(), strict=True))
    assert len(set(chosen)) == len(chosen) == len(probe.classes) * probe.per_class
    assert [labels[item][place] for item, place in chosen] == probe.labels.tolist()
    assert min(probe.labels) >= 0
