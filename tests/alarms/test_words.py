"""Warnings in words: what declined, what it means, what changed, what to do."""

from __future__ import annotations

import math

import pytest

from geomonitor import History, Record, Verdict
from geomonitor.alarms.context import what_changed
from geomonitor.alarms.phrases import numbers
from geomonitor.alarms.words import explain


@pytest.mark.parametrize(
    ("marker", "agreeing", "said", "unsaid"),
    [
        ("dimension", ("mean_norm",), "Not covered: accuracy on the training classes", "also affected"),
        ("dimension", ("accuracy",), "Accuracy on the training classes is also affected.", "Not covered: accuracy"),
        ("capacity", ("cdnv",), "harder to separate", "not known"),
        (
            "numerical_rank",
            (),
            "Networks with fewer transfer worse to new classes (Masarczyk et al. 2023)",
            "not known",
        ),
        ("stable_rank", (), "Networks with a lower value transfer worse", "not known"),
        ("mean_norm", (), "feature vectors are shorter", "transfer worse"),
        ("accuracy", (), "fewer points of the probe set are classified correctly", "transfer worse to new classes"),
        ("my_marker", (), "my_marker left its range", "transfer worse"),
    ],
)
def test_what_a_decline_of_each_marker_means(marker, agreeing, said, unsaid):
    text = explain(Verdict(True, "fc", marker, 0.8, 1.0, 0.01, since_step=20, checks=1, agreeing=agreeing))
    assert said in text
    assert unsaid not in text
    assert max(map(len, text.splitlines())) < 200


def test_a_rise_of_what_is_worse_when_lower_is_not_explained_as_a_fall():
    for marker in ("capacity", "accuracy", "dimension"):
        verdict = Verdict(True, "fc", marker, 1.2, 1.0, 0.01, since_step=20, checks=1, direction="higher")
        assert "Its effect on new classes is not known" in explain(verdict)
        assert "also affected" not in explain(verdict)


def test_words():
    verdict = Verdict(True, "penultimate", "dimension", 1.2, 2.0, 0.1, since_step=216, since_epoch=8, checks=3)
    text = explain(verdict)
    for part in (numbers(verdict), "40 %", "new classes", "Not covered: accuracy on the training classes", "step 216"):
        assert part in text
    assert max(map(len, text.splitlines())) < 200
    assert "low since step 216" in numbers(verdict._replace(since_epoch=None))


def changes(name, *values) -> list[str]:
    records = [Record(10 * n, n, "", name, value) for n, value in enumerate(values)]
    return what_changed(History(records), since_step=10 * (len(values) - 1))


@pytest.mark.parametrize(
    ("name", "values", "changed"),
    [
        ("learning_rate", (0.1, 0.1, 0.01), ["learning_rate 0.1 -> 0.01 between steps 10 and 20"]),
        ("learning_rate", (0.1, 0.1, 0.09), []),
        ("weight_decay", (0.0, 0.0, 0.02, 0.02), ["weight_decay 0 -> 0.02 between steps 10 and 20"]),
        ("weight_decay", (0.0, 0.02, 0.02, 0.02, 0.02), []),  # long before
        ("gradient_norm", (0.6, 1.7, 0.5), []),  # of one batch: it varies so much anyhow
        ("gradient_norm", (0.6, 0.6, 12.0), ["gradient_norm 0.6 -> 12 between steps 10 and 20"]),
        ("gradient_norm", (0.6, math.nan, 0.6), []),
        ("resumed", (0.0, 0.0, 1.0), ["resumed before step 20"]),
    ],
)
def test_what_changed_just_before(name, values, changed):
    assert changes(name, *values) == changed


def test_a_warning_says_what_changed_and_what_to_try():
    verdict = Verdict(True, "fc", "dimension", 1.2, 2.0, 0.1, since_step=20, checks=2)
    text = explain(verdict, changes("weight_decay", 0.0, 0.0, 0.02))
    assert "Changed just before: weight_decay 0 -> 0.02 between steps 10 and 20." in text
    assert "Try: restore the weight decay" in text
    assert "Try" not in explain(verdict)


def test_a_rise_is_named_a_rise():
    verdict = Verdict(True, "fc", "nc1", 3.0, 2.0, 0.1, since_step=20, checks=1, direction="higher")
    assert "nc1 of 'fc' rose by 50 %" in numbers(verdict)
    assert "Its effect on new classes is not known" in explain(verdict)
