"""Settings of detectors: what is refused, with what to write, and what is made a plain number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geomonitor import Cusum, DropFromReference, InputError, ReferenceRuns, Trend
from geomonitor.alarms.detectors import AgreeingDrop


@pytest.mark.parametrize(
    ("detector", "option", "text"),
    [
        (DropFromReference, {"patience_checks": math.nan}, "patience_checks is a whole number, 1 or more; got nan"),
        (DropFromReference, {"patience_checks": 2.0}, "whole number"),
        (DropFromReference, {"warmup_checks": True}, "whole number, 1 or more; got True"),
        (DropFromReference, {"warmup_checks": math.inf}, "whole number"),
        (DropFromReference, {"drop": math.inf}, r"drop lies in \(0, 1\); got inf"),
        (DropFromReference, {"drop": math.nan}, "drop lies in"),
        (DropFromReference, {"drop": "0.1"}, "drop lies in .*; got '0.1'"),
        (DropFromReference, {"drop": None}, "drop lies in"),
        (DropFromReference, {"sigmas": math.inf}, r"sigmas lies in \[0, inf\)"),
        (DropFromReference, {"sigmas": True}, "sigmas lies in"),
        (DropFromReference, {"settled": math.nan}, "settled lies in"),
        (DropFromReference, {"follow_trend": 1}, "follow_trend is True or False; got 1"),
        (DropFromReference, {"worse": None}, "worse is one of 'lower', 'higher', 'either', 'marker'"),
        (DropFromReference, {"worse": ["lower"]}, "worse is one of"),
        (AgreeingDrop, {"drop": math.nan}, "drop lies in"),
        (Cusum, {"threshold": math.inf}, "threshold lies in"),
        (Cusum, {"allowance": -0.1}, "allowance lies in"),
        (Cusum, {"follow_trend": None}, "follow_trend"),
        (Trend, {"window": 6.5}, "window is a whole number, 4 or more"),
        (Trend, {"steeper": math.nan}, "steeper lies in"),
    ],
)
def test_settings_without_sense_are_refused(detector, option, text):
    with pytest.raises(InputError, match=text):
        detector(**option)


@pytest.mark.parametrize("option", [{"coverage": 0.5}, {"least_change": 1}, {"patience_checks": 0}, {"worse": "up"}])
def test_settings_of_reference_runs_are_checked_before_the_files_are_read(option):
    with pytest.raises(InputError, match=next(iter(option))):
        ReferenceRuns("nowhere/*.csv", **option)


@pytest.mark.parametrize("reference", [None, 3, [1, 2, 3], {"a": 1}])
def test_reference_runs_are_paths_or_histories(reference):
    with pytest.raises(InputError, match="a pattern of history files, or a list of paths or histories"):
        ReferenceRuns(reference)


def test_numbers_of_numpy_become_plain_ones():
    detector = DropFromReference(
        drop=np.float32(0.25), sigmas=np.int64(2), patience_checks=np.int64(3), follow_trend=np.bool_(True)
    )
    assert detector == DropFromReference(drop=0.25, sigmas=2, patience_checks=3, follow_trend=True)
    types = [type(value) for value in (detector.drop, detector.sigmas, detector.patience_checks, detector.follow_trend)]
    assert types == [float, int, int, bool]
    assert DropFromReference(plain=math.inf).plain == math.inf
