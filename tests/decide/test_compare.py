"""Comparing runs: bounds are kept or broken as they say, and what cannot be compared is refused."""

from __future__ import annotations

import math

import pytest

from geomonitor import InputError, Record
from geomonitor.decide.compare import bound, compare_runs
from geomonitor.history.runs import load_run
from tests.runs_on_disk import PROTOCOL, STEPS, write_run


@pytest.fixture
def runs(tmp_path):
    return load_run(write_run(tmp_path / "old")), load_run(write_run(tmp_path / "new", faulty=True))


def broken(runs, *bounds):
    return {f.marker for f in compare_runs(*runs, bounds) if f.broken}


def test_values_are_those_of_the_last_measurement(runs):
    findings = {f.marker: f for f in compare_runs(*runs)}
    assert findings["dimension"].value == runs[1].history.series("penultimate", "dimension").values[-1]
    assert findings["dimension"].change == pytest.approx(-0.5, abs=0.01)
    assert "alarm" not in findings
    assert not any(f.broken for f in findings.values())


@pytest.mark.parametrize(
    ("text", "side", "fails"),
    [
        ("dimension=90%", "min", True),  # fell to about 50 %
        ("dimension=45%", "min", False),
        ("dimension=0.9", "min", False),  # is about 1.0
        ("dimension=1.1", "min", True),
        ("penultimate/dimension=1.1", "min", True),
        ("dimension=1.1", "max", False),
        ("dimension=40%", "max", True),
        ("rankme=100%", "min", False),  # equal is good enough
        ("rankme=5", "max", False),
    ],
)
def test_bounds(runs, text, side, fails):
    assert broken(runs, bound(text, side)) == ({text.split("/")[-1].split("=")[0]} if fails else set())


def test_an_undefined_value_keeps_no_bound(runs):
    runs[1].history.append([Record(STEPS * 20, 19, "penultimate", "dimension", math.nan)])
    assert broken(runs, bound("dimension=0", "min")) == broken(runs, bound("dimension=9", "max")) == {"dimension"}


@pytest.mark.parametrize("text", ["dimension", "dimension=", "dimension=ninety", "=3", "a/b/c=3", "dimension=nan"])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(InputError, match="expected MARKER=90%"):
        bound(text, "min")


@pytest.mark.parametrize("text", ["dimensoin=1", "fc/dimension=1", "alarm=0"])
def test_a_bound_on_what_was_not_measured_is_refused(runs, text):
    with pytest.raises(InputError, match="no such marker; it has penultimate/capacity"):
        compare_runs(*runs, [bound(text, "min")])


def test_a_relative_bound_needs_one_protocol_and_a_positive_reference(tmp_path, runs):
    other = load_run(write_run(tmp_path / "other", protocol={**PROTOCOL, "per_class": 20}))
    with pytest.raises(InputError, match=r"different protocols \(per_class\)"):
        compare_runs(other, runs[1], [bound("dimension=90%", "min")])
    assert not broken((other, runs[1]), bound("dimension=0.5", "min"))
    runs[0].history.append([Record(STEPS * 20, 19, "penultimate", "dimension", -1.0)])
    with pytest.raises(InputError, match="no positive value"):
        compare_runs(*runs, [bound("dimension=90%", "min")])


def test_a_marker_that_only_the_run_has(runs):
    runs[1].history.append([Record(480, 19, "penultimate", "entropy", 0.5)])
    assert broken(runs, bound("entropy=0.6", "min")) == {"entropy"}
    with pytest.raises(InputError, match="no penultimate/entropy to compare with"):
        compare_runs(*runs, [bound("entropy=50%", "min")])
