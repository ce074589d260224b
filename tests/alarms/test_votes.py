"""From the markers of a layer to the layer: families vote, and one marker stands for all."""

from __future__ import annotations

import numpy as np

from geomonitor import DropFromReference, History, Record, Verdict
from geomonitor.alarms.judge import judge_history
from geomonitor.alarms.panel import Panel
from tests.alarms.detectors.synthetic import FAULT


def judge(history, layer, watch, detector, votes=1) -> Verdict:
    return judge_history(history, layer, Panel(watch, detector, votes))


def two(dimension, cdnv) -> History:
    values = {"dimension": dimension, "cdnv": cdnv}
    return History(Record(10 * n, n, "fc", m, v[n], 0.001) for n in range(len(dimension)) for m, v in values.items())


def test_two_families_at_once_are_as_good_as_one_family_twice():
    fallen, risen = 2 * FAULT[:21], 1 / FAULT[:21]  # one measurement after the onset
    steady = np.full(21, 1.0)
    both = judge(two(fallen, risen), "fc", ["dimension", "cdnv"], DropFromReference())
    assert both.declined
    assert both.since_epoch == 20
    assert both.checks == 1
    assert {both.marker, *both.agreeing} == {"dimension", "cdnv"}
    for one in (two(fallen, steady), two(steady, risen)):
        verdict = judge(one, "fc", ["dimension", "cdnv"], DropFromReference())
        assert not verdict.declined
        assert verdict.share == 0.5
    patient = DropFromReference(patience_checks=3)
    assert not judge(two(fallen, risen), "fc", ["dimension", "cdnv"], patient).declined
    assert judge(two(2 * FAULT[:22], 1 / FAULT[:22]), "fc", ["dimension", "cdnv"], patient).declined  # 2/3 + 2/3


def test_one_family_has_one_vote_however_many_of_its_markers_fall():
    history = History(
        Record(10 * n, n, "fc", m, 2 * FAULT[n], 0.001) for n in range(21) for m in ("dimension", "radius")
    )
    lower = DropFromReference(worse="lower")
    assert not judge(history, "fc", ["dimension", "radius"], lower).declined


def test_the_loudest_marker_speaks_for_the_layer():
    history = History(
        Record(10 * n, n, "fc", marker, 2 * FAULT[n] ** power, 0.06)
        for n in range(25)
        for marker, power in (("dimension", 1), ("rankme", 2), ("nc1", 0))
    )
    assert judge(history, "fc", ["nc1", "dimension", "rankme"], DropFromReference()).marker == "rankme"
    assert not judge(history, "fc", ["nc1"], DropFromReference()).declined


def test_the_representation_speaks_before_the_accuracy():
    history = History(
        Record(10 * n, n, "fc", marker, 2 * FAULT[n] ** power, 0.06)
        for n in range(25)
        for marker, power in (("dimension", 1), ("accuracy", 4))
    )
    verdict = judge(history, "fc", ["accuracy", "dimension"], DropFromReference(), votes=2)
    assert (verdict.declined, verdict.marker, verdict.agreeing) == (True, "dimension", ("accuracy",))
    assert judge(history, "fc", ["accuracy"], DropFromReference()).marker == "accuracy"
