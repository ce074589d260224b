"""The status: one text for a person, which state it is in, and that it promises no more than was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geomonitor import History, Panel, Record, Verdict
from geomonitor.alarms.harm import ALARMS_IN_THE_BENCH, NOTICES_IN_THE_BENCH
from geomonitor.alarms.status import of_layer, status_of
from geomonitor.alarms.status_text import COLORS, TITLES, of_change
from geomonitor.alarms.words import explain_in
from geomonitor.history.saved import SavedCheckpoint
from geomonitor.markers import MARKERS

HEALTHY = {"dimension": 2.0, "numerical_rank": 200.0, "mean_norm": 5.0, "cdnv": 0.2, "accuracy": 0.9}
FALL = 14


def run(*, falls=(), by=0.4, measurements=20, layer="penultimate", alarm=None) -> History:
    """A run of the default panel; from measurement ``FALL`` on some markers are lower by a share."""
    noise = np.random.default_rng(0).normal(0, 2e-3, (len(HEALTHY), measurements))
    history = History()
    for n in range(measurements):
        for row, (marker, value) in zip(noise, HEALTHY.items(), strict=True):
            low = 1 - by if marker in falls and n >= FALL else 1.0
            history.append([Record(10 * n, n, layer, marker, value * low * (1 + row[n]))])
        if alarm is not None:
            history.append([Record(10 * n, n, layer, "alarm", alarm(n))])
    return history


def test_it_begins_with_the_dimension_not_with_the_most_standard_errors():
    history = run(falls=("dimension", "numerical_rank"))
    for n in range(20):  # the dimension is the noisier of the two
        latest = history.series("penultimate", "dimension").values[n]
        history.append([Record(10 * n, n, "penultimate", "dimension", latest * (1 + 0.03 * (-1) ** n))])
    status = status_of(history)
    assert status.state == "alarm"
    assert status.headline.startswith("The representation has lost 4")
    assert f"of its dimension since epoch {FALL} (step {10 * FALL}). New classes will likely fare worse." in status.text
    assert any(line.startswith("Numbers: numerical_rank of 'penultimate' fell by 40 %") for line in status.details)
    assert "Chou et al." in status.text  # the meaning is that of the marker it begins with


def test_a_marker_whose_change_alone_is_no_reason_for_an_alarm_is_not_its_first_word():
    verdict = Verdict(
        True, "penultimate", "numerical_rank", 120.0, 200.0, 2.0, since_step=140, since_epoch=14, checks=3,
        agreeing=("dimension", "mean_norm"), calibrated=True, noticed=True,
    )  # fmt: skip
    assert "has lost 40 % of the directions that carry signal" in of_layer(run(), "penultimate", verdict).headline
    fallen = run(falls=("dimension",), by=0.1)  # an alarm needs 20 %
    assert "has lost 40 % of the directions" in of_layer(fallen, "penultimate", verdict).headline
    fallen = run(falls=("dimension",), by=0.3)
    assert "has lost 30 % of its dimension" in of_layer(fallen, "penultimate", verdict).headline


def test_what_it_says_of_harm_is_what_was_measured():
    alarm = Verdict(True, "fc", "dimension", 1.2, 2.0, 0.1, since_step=20, checks=2, calibrated=True, noticed=True)
    harmed, raised = ALARMS_IN_THE_BENCH
    assert harmed / raised > 0.5  # "likely"
    assert f"{harmed} of {raised} such alarms" in of_change(alarm).text
    own = of_change(alarm._replace(calibrated=False))
    assert "New classes may fare worse." in own.headline  # nothing was measured of another panel
    assert "How sure" not in own.text
    unknown = of_change(alarm._replace(calibrated=False, marker="mean_norm"))
    assert "What it means for new classes is not known." in unknown.headline
    notice = of_change(alarm._replace(declined=False))
    assert notice.state == "notice"
    assert "fare worse" not in notice.text
    assert "No alarm: the change is smaller" in notice.headline
    assert "{} of {}".format(*NOTICES_IN_THE_BENCH) in notice.text


def test_the_way_back_is_named_only_if_it_is_from_before():
    verdict = Verdict(True, "fc", "dimension", 1.2, 2.0, 0.1, since_step=20, checks=2)
    before, after = SavedCheckpoint("a.ckpt", 10, 1), SavedCheckpoint("b.ckpt", 20, 2)
    assert of_change(verdict, healthy=before).actions[0] == "Last healthy checkpoint: a.ckpt (epoch 1, step 10)."
    assert "b.ckpt" not in of_change(verdict, healthy=after).text
    assert "one from before step 20" in of_change(verdict, healthy=after).actions[0]


@pytest.mark.parametrize(
    ("measurements", "text"),
    [
        (4, "Judged from measurement 7 at the earliest; so far 4 measurements."),
        (1, "Judged from measurement 7 at the earliest; so far 1 measurement."),
    ],
)
def test_too_early_says_until_when(measurements, text):
    status = status_of(run(measurements=measurements))
    assert (status.state, status.headline) == ("early", text)
    assert "measure more often" in status.actions[0]


def test_the_first_judged_measurement_is_the_one_that_was_announced():
    states = [status_of(run(measurements=n)).state for n in range(1, 9)]
    assert states == ["early"] * 6 + ["healthy"] * 2


def test_a_planned_change_starts_the_count_anew():
    history = run(measurements=12)
    history.append([Record(90, 9, "", "announced", 1.0)])
    assert "so far 3 measurements since the planned change" in status_of(history).headline


def test_a_slow_start_is_too_early_after_the_shortest_warm_up_also():
    history = History(Record(10 * n, n, "fc", "dimension", 4 * 0.8**n) for n in range(9))
    assert "early fall of the markers is not over after 9 measurements" in status_of(history).headline


def test_blind_is_the_state_since_the_first_of_the_failures_at_the_end():
    history = run(measurements=12, alarm=lambda n: math.nan if n in (3, 9, 10, 11) else 0.0)
    status = status_of(history)
    assert (status.state, status.since_epoch) == ("blind", 9)
    assert "search it for a warning" in status.text
    history.append([Record(110, 11, "penultimate", "nonfinite_rows", 7.0)])
    assert "7 points of the probe set had NaN" in status_of(history).text
    history.append([Record(120, 12, "penultimate", "dimension", 2.0), Record(120, 12, "penultimate", "alarm", 0.0)])
    assert status_of(history).state == "healthy"


def test_an_alarm_does_not_turn_blind_when_measurements_fail():
    history = run(falls=("dimension", "numerical_rank"), alarm=lambda n: float(n > FALL))
    history.append([Record(200, 20, "penultimate", "alarm", math.nan)])
    status = status_of(history)
    assert status.state == "alarm"
    assert status.details[0] == "Measurements fail since epoch 20 (step 200): this is older."


def test_a_healthy_run_is_not_called_safe():
    status = status_of(run())
    assert status.state == "healthy"
    assert "No proof of health" in status.text
    assert "107 of 1,697" in status.text


def test_the_most_urgent_layer_speaks_and_the_others_are_named():
    history = run(layer="a")
    history.append(run(falls=("dimension", "numerical_rank"), layer="b"))
    status = status_of(history)
    assert (status.state, status.layer) == ("alarm", "b")
    assert "The representation of 'b' has lost" in status.headline
    assert status.details[-1] == "Other layers: 'a' healthy."


def test_without_a_panel_or_a_measurement():
    assert status_of(run(), panel=None).state == "unwatched"
    assert status_of(History()).state == "early"
    assert status_of(History([Record(1, 0, "fc", "nc3", 1.0)])).state == "unwatched"  # not a watched marker
    recorded = run(alarm=lambda n: float(n > 3))
    assert status_of(recorded, panel=None).headline.startswith("The detector of the run raised an alarm")


def test_the_text_is_the_same_wherever_it_stands():
    history = run(falls=("dimension", "numerical_rank"))
    status = status_of(history)
    from geomonitor.alarms.judge import judge_history

    verdict = judge_history(history, "penultimate", Panel())
    assert str(status) == status.text == explain_in(history, verdict)
    assert max(map(len, status.text.splitlines())) < 200
    shown = status._repr_html_()
    assert status.color in shown
    assert "&#x27;penultimate&#x27;" in shown  # names are escaped


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("direction", ["lower", "higher"])
def test_every_marker_has_a_sentence(marker, direction):
    verdict = Verdict(True, "<b>", marker, 0.0 if direction == "lower" else 3.0, 2.0, 0.1, 20, direction=direction)
    status = of_change(verdict)
    assert "{" not in status.text
    assert "<b>" not in status._repr_html_()


def test_colours_can_be_read_on_white():
    def luminance(color: str) -> float:
        parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert set(COLORS) == set(TITLES)
    for color in COLORS.values():
        assert 1.05 / (luminance(color) + 0.05) >= 4.5  # WCAG AA for text
