"""The report: what it says is true, nothing from a run is read as markup, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from geomonitor import History, InputError, Record, Verdict
from geomonitor.alarms.alarm import Alarm
from geomonitor.alarms.panel import Panel, panel_of
from geomonitor.history.runs import Run, load_run
from geomonitor.report import figures, findings, render_report, write_report
from tests.runs_on_disk import FAULT, MEASUREMENTS, PROTOCOL, STEPS, write_run

HOSTILE = ["<script>alert(1)</script>", "</script><img src=x>", '"onload="alert(1)', "{{ 7 * 7 }}", "a & <b>b</b>"]


class Page(HTMLParser):
    """Tags, attributes, text and the raw content of scripts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text, self.scripts = "", [""]
        self._raw = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._raw = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._raw = ""

    def handle_data(self, data):
        if self._raw == "script":
            self.scripts[-1] += data
        elif not self._raw:
            self.text += data

    @property
    def figures(self):
        return json.loads(self.scripts[1])


@pytest.fixture
def faulty(tmp_path):
    return load_run(write_run(tmp_path / "faulty", faulty=True))


@pytest.fixture
def healthy(tmp_path):
    return load_run(write_run(tmp_path / "healthy"))


def test_a_decline_is_the_first_sentence_and_is_explained(faulty):
    text = " ".join(Page(render_report(faulty)).text.split())
    assert (
        f"has lost 49 % of its dimension since epoch {FAULT} (step {STEPS * (FAULT + 1)}). New classes may fare" in text
    )
    assert f"Raised at epoch {FAULT + 1} (step {STEPS * (FAULT + 2)}), on until the end." in text
    assert "Not covered: accuracy on the training classes" in text
    assert "c2697f62aabe614c" in text


def test_an_alarm_begins_with_the_dimension_as_it_was_then_not_with_the_marker_of_most_standard_errors(faulty):
    (alarm,) = findings.alarms(faulty.history, panel_of(faulty.panel))
    alarm = alarm._replace(verdict=alarm.verdict._replace(marker="utility", agreeing=("dimension",)))
    title, paragraphs = findings.words(faulty.history, alarm, panel_of(faulty.panel))
    assert title.startswith("The representation has lost 50 % of its dimension since epoch 12")
    assert any(line.startswith("Numbers: utility") for line in paragraphs)
    later = [r._replace(step=504, epoch=20, value=1.9) for r in faulty.history.latest() if r.marker == "dimension"]
    faulty.history.append(later)  # the run recovers
    assert findings.words(faulty.history, alarm, panel_of(faulty.panel))[0] == title


def test_a_healthy_run_has_no_alarm_and_is_not_called_safe(healthy):
    text = " ".join(Page(render_report(healthy)).text.split())
    assert "No watched marker has declined beyond the noise up to epoch 19 (step 480)." in text
    assert "no proof of a healthy run" in text
    assert "transfer to new classes." not in text


def test_facts_are_date_length_and_cost(healthy):
    assert findings.facts(healthy.history) == [
        "09 September 2001, 02:05 UTC",
        f"20 measurements up to epoch 19 (step {STEPS * MEASUREMENTS})",
        "measured in 0.5 s each, 0.8 % of the time",
    ]


def test_what_triggered_comes_first_with_an_arrow(faulty, healthy):
    html = render_report(faulty)
    assert html.index('data-figure="dimension"') < html.index('data-figure="capacity"')
    assert re.search(r'class="hot">\s*<figcaption><span class="worse">worse ↓</span><b>dimension', html)
    assert 'id="only"' in html
    assert 'class="hot"' not in render_report(healthy)


def test_the_table_names_the_worse_direction_and_leaves_out_what_is_0_or_1(healthy):
    healthy.history.append([Record(STEPS, 0, "penultimate", name, 1.0) for name in ("cdnv", "notice", "judged")])
    html = render_report(healthy)
    assert '<span class="worse">worse ↑</span><b>cdnv' in html
    table = html[html.index("<h2>Change since the reference") : html.index("<h2>Protocol")]
    rows = {
        row[0]: row[-1] for row in (re.findall(r"<td[^>]*>([^<]*)</td>", line) for line in table.split("<tr>")) if row
    }
    assert (rows["dimension"], rows["cdnv"], rows["capacity"]) == ("lower", "higher", "")
    assert not {"notice", "judged", "alarm"} & rows.keys()


def test_the_change_is_that_since_before_the_decline(faulty):
    values = faulty.history.series("penultimate", "dimension").values
    before, last = findings.reference(faulty.history.series("penultimate", "dimension"), STEPS * (FAULT + 1))
    assert before == np.median(values[FAULT - 3 : FAULT])
    assert last == values[-1]
    assert f"{last / before - 1:+.1%}".replace("%", "&nbsp;%") in render_report(faulty)
    later = findings.reference(faulty.history.series("penultimate", "dimension"), None)[0]
    assert later == np.median(values[9:19])


def test_first_values_do_not_rule_an_axis_but_a_fall_at_the_end_does():
    def axis(values):
        return figures.value_range([{"y": values, "meta": {}}])

    early = [*[9.0, 5.0, 3.0], *[2.0, 1.9] * 8]
    assert axis(early)[1] < 3.0
    fallen = [2.0, 1.9] * 8 + [0.2]
    assert axis(fallen)[0] < 0.2
    assert axis([2.1, 1.9] * 8) == pytest.approx((1.89, 2.11))
    assert axis([None]) == (0.0, 1.0)
    assert axis([3.0, 2.0, 1.9, *[None] * 20])[1] > 3.0  # too few to leave one out, however many failed
    assert axis([2.0, 2.0])[0] < 2.0 < axis([2.0, 2.0])[1]


def test_an_axis_that_leaves_out_first_values_shows_the_bands_of_the_others():
    """Else noise looks like a signal."""
    steps, values = list(range(20)), [9.0, 5.0, 3.0, *[2.0, 1.9] * 8, 2.0]
    upper, lower = [value + 0.3 for value in values], [value - 0.3 for value in reversed(values)]
    band = {"x": [*steps, *reversed(steps)], "y": [*upper, *lower], "meta": {"band": True}}
    low, high = figures.value_range([band, {"x": steps, "y": values, "meta": {}}])
    assert low < 1.6
    assert 2.3 < high < 3.0


def test_an_alarm_of_another_detector_is_named_as_such(tmp_path):
    run = load_run(write_run(tmp_path))
    run.history.append([Record(48, 1, "penultimate", "alarm", 1.0), Record(72, 2, "penultimate", "alarm", 0.0)])
    (alarm,) = findings.alarms(run.history, Panel())
    assert (alarm.step, alarm.end_step, alarm.verdict) == (48, 72, None)
    assert "another detector" in findings.words(run.history, alarm, Panel())[1][0]


def test_the_report_judges_by_the_panel_of_the_run(tmp_path):
    panel = Panel(("rankme", "nc1"), "cusum", 2)
    run = load_run(write_run(tmp_path, panel=panel.to_dict()))
    text = " ".join(Page(render_report(run)).text.split())
    assert "No watched marker has declined beyond the noise up to epoch 19 (step 480)." in text
    assert "Numbers: rankme of 'penultimate' is 5, expected 5." in text
    assert "agreeing_drop" not in text
    assert "cusum" in text  # among the settings


def test_an_alarm_of_a_custom_detector_is_shown_with_its_name(tmp_path):
    panel = Panel(("dimension",), lambda series: None)
    run = load_run(write_run(tmp_path, faulty=True, panel=panel.to_dict()))
    text = " ".join(Page(render_report(run)).text.split())
    assert f"Raised at epoch {FAULT + 1} (step {STEPS * (FAULT + 2)}), on until the end." in text
    assert "judged by a custom detector, tests.report.test_report." in text
    silent = run._replace(history=History([Record(1, 0, "fc", "dimension", 2.0)]))
    assert "by a custom detector" in findings.status(silent).headline


def test_the_terms_add_up_to_the_change_of_log_capacity(faulty):
    parts = findings.decomposition(faulty.history, "penultimate", Panel())
    capacity = faulty.history.series("penultimate", "capacity").values
    assert parts.before_decline
    assert parts.reference == FAULT - 1
    np.testing.assert_allclose(parts.total, np.log(capacity / capacity[FAULT - 1]), atol=1e-12)
    np.testing.assert_allclose(parts.terms.sum(axis=0), parts.total, atol=1e-12)
    assert parts.terms[2, -1] == pytest.approx(math.log(2), abs=0.05)  # the dimension fell by half
    assert parts.terms[0, -1] == pytest.approx(-math.log(2), abs=0.05)


def test_the_page_has_the_change_of_each_term_since_the_last_measurement_before_the_decline(faulty):
    html = render_report(faulty)
    series = {m: faulty.history.series("penultimate", m).values for m in ("capacity", "utility", "radius", "dimension")}
    before, last = ({m: v[place] for m, v in series.items()} for place in (FAULT - 1, -1))
    factor = last["capacity"] / before["capacity"]
    text = " ".join(Page(html).text.split())
    assert f"Since epoch {FAULT - 1} (step {STEPS * FAULT}), the last measurement before the decline, the" in text
    assert f"changed by a factor of {factor:.3g}." in text
    changes = [
        math.log(last["utility"] / before["utility"]),
        math.log((1 + last["radius"] ** -2) / (1 + before["radius"] ** -2)),
        -math.log(last["dimension"] / before["dimension"]),
        math.log(factor),
    ]
    part = html[html.index("change at the end") : html.index("<h2>Change since")]
    assert re.findall(r'"number">([+-][\d.]+)<', part) == [f"{change:+.3f}" for change in changes]


def test_a_notice_also_moves_the_reference(faulty, monkeypatch):
    quiet = Verdict(False, "penultimate", "dimension", since_step=STEPS * (FAULT + 1))
    rows = []
    for noticed in (True, False):
        monkeypatch.setattr(findings, "verdict_of", lambda *_, of=noticed: quiet._replace(noticed=of))
        rows.append(re.search(r"<tr><td>dimension</td>.*", render_report(faulty))[0])
    series = faulty.history.series("penultimate", "dimension")
    for row, since in zip(rows, (quiet.since_step, None), strict=True):
        assert f">{findings.reference(series, since)[0]:.4g}<" in row


def test_without_the_four_markers_there_is_no_decomposition():
    history = History([Record(n, n, "fc", "dimension", 2.0) for n in range(5)])
    assert findings.decomposition(history, "fc", Panel()) is None


def test_overhead_is_that_of_the_measurements(healthy):
    cost = findings.overhead(healthy.history)
    assert (cost.measurements, cost.total, cost.median) == (MEASUREMENTS, 0.5 * MEASUREMENTS, 0.5)
    assert cost.share == pytest.approx(0.5 / 60)  # half a second in every minute


def test_the_cost_is_that_of_all_measurements_and_the_share_leaves_out_the_last(tmp_path):
    history = History(
        [Record(n + 1, n, "", "seconds", s, time=1e9 + 20 * n) for n, s in enumerate([1.0, 2.0, 7.0, 2.0, 50.0])]
        + [Record(n + 1, n, "fc", "dimension", 2.0) for n in range(5)]
    )
    cost = findings.overhead(history)
    assert cost == (5, 62.0, 2.0, 50.0, 12 / 80)  # seconds count until the last measurement begins
    run = load_run(write_run(tmp_path))._replace(history=history)
    row = re.search(r"<tr><td>[^<]*</td><td class=\"number\">5</td>.*", render_report(run))[0]
    assert re.findall(r">([\d.]+(?: %)?)<", row) == ["5", "62", "2", "50", "15.0 %"]


def test_an_alarm_that_ends_is_shaded_up_to_its_end_and_one_that_lasts_up_to_that_of_the_run():
    history = History([Record(10 * n, n, "fc", "alarm", float(n in (3, 4, 8, 9))) for n in range(10)])
    raised = findings.alarms(history, Panel())
    assert findings.spans(history, raised, "epoch") == [(3.0, 5.0), (8.0, 9.0)]
    assert findings.spans(history, raised, "step") == [(30.0, 50.0), (80.0, 90.0)]


def test_what_triggered_is_named_by_alarms_and_by_the_status_most_telling_first(healthy):
    verdict = Verdict(True, "penultimate", "numerical_rank", agreeing=("mine", "accuracy"))
    alarm = Alarm("penultimate", 24, None, None, verdict)
    status = findings.status(healthy)
    assert findings.triggered([alarm], status) == ["numerical_rank", "accuracy", "mine"]
    notice = status._replace(state="notice", markers=("dimension",))
    assert findings.triggered([alarm], notice) == ["dimension", "numerical_rank", "accuracy", "mine"]


def test_of_many_alarms_the_first_and_the_last_ones_are_shown():
    records = [Record(n + 1, n, "fc", "alarm", float(n % 2)) for n in range(140)]
    html = render_report(Run("many", Path("many/geometry.csv"), History(records), {}))
    steps = [int(step) for step in re.findall(r"Raised at epoch \d+ \(step (\d+)\)", html)]
    assert steps == [*range(2, 52, 2), *range(92, 142, 2)]
    assert "20 of 70 alarms (those in the middle)" in html


def test_the_first_measurement_of_a_decline_is_no_part_of_its_reference():
    history = History([Record(n, n, "fc", "dimension", v) for n, v in enumerate([9.0, 3.0, 1.0, 2.0, 0.4, 0.5])])
    assert findings.reference(history.series("fc", "dimension"), 4) == (2.0, 0.5)


def test_what_is_left_out_is_counted(tmp_path):
    run = load_run(write_run(tmp_path))
    run.history.append([Record(24, 0, "penultimate", f"mine_{n:03}", 1.0) for n in range(120)])
    text = " ".join(Page(render_report(run)).text.split())
    assert "26 of 126 markers" in text


def test_curves_bands_and_alarm_lines_are_those_of_the_history(faulty):
    figure = Page(render_report(faulty)).figures["dimension"]
    series = faulty.history.series("penultimate", "dimension")
    band, line = figure["data"]
    assert line["x"] == series.epochs.tolist()
    np.testing.assert_allclose(line["y"], series.values, rtol=1e-5)  # six digits are kept for the eye
    half = 2 * series.standard_errors
    np.testing.assert_allclose(band["y"][:MEASUREMENTS], series.values + half, rtol=1e-5)
    np.testing.assert_allclose(band["y"][MEASUREMENTS:], (series.values - half)[::-1], rtol=1e-5)
    span, mark = figure["layout"]["shapes"]
    assert (span["type"], span["x0"], span["x1"]) == ("rect", FAULT + 1, MEASUREMENTS - 1)
    assert mark["x0"] == FAULT + 1


def test_a_failed_measurement_is_a_gap(tmp_path):
    run = load_run(write_run(tmp_path))
    run.history.append([Record(STEPS * 5, 4, "penultimate", "dimension", math.nan)])
    band, line = Page(render_report(run)).figures["dimension"]["data"]
    assert line["y"].index(None) == 4
    assert band["y"].index(None) == 8  # two outlines: four measurements up and down, then the rest
    assert len(band["y"]) == 8 + 1 + 2 * 15


def test_several_measurements_of_an_epoch_are_drawn_over_steps(tmp_path):
    run = load_run(write_run(tmp_path))
    run.history.append([Record(500, 19, "penultimate", "dimension", 2.0)])
    figure = Page(render_report(run)).figures["dimension"]
    assert figure["data"][-1]["x"][:2] == [STEPS, 2 * STEPS]


def test_runs_beside_one_another(faulty, healthy):
    page = Page(render_report(faulty, compare=[healthy]))
    lines = [t for t in page.figures["dimension"]["data"] if "name" in t]
    assert [t["name"] for t in lines] == ["faulty", "healthy"]
    assert "must not be compared" not in page.text


def test_runs_of_other_protocols_are_marked(tmp_path, healthy):
    other = load_run(write_run(tmp_path / "other", protocol={**PROTOCOL, "per_class": 20}))
    page = Page(render_report(healthy, compare=[other]))
    assert "must not be compared" in page.text
    assert ("class", "differs") in page.attributes


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_from_a_run_is_markup(tmp_path, text):
    protocol = {text: text, "layers": {"x": [text]}}
    run = load_run(write_run(tmp_path / "run", faulty=True, layer=text, protocol=protocol))
    run.history.append([Record(24, 0, text, text, 1.0)])
    run = run._replace(name=text)
    harmless = Page(render_report(load_run(write_run(tmp_path / "harmless", faulty=True))))
    page = Page(render_report(run))
    assert text in page.text
    assert page.tags.count("script") == harmless.tags.count("script") == 2
    assert "img" not in page.tags
    assert page.tags.count("b") == harmless.tags.count("b") + 1  # one more marker: one more caption
    assert {name for name, _ in page.attributes} == {name for name, _ in harmless.attributes}
    assert page.scripts[2:] == harmless.scripts[2:]
    name = page.figures["dimension"]["data"][-1]["name"]
    assert name == text  # which page.js writes as text, never as markup


def test_the_file_loads_nothing_and_runs_only_its_own_scripts(tmp_path, healthy):
    path = write_report(healthy, tmp_path / "made" / "report.html")
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href")]
    policy = re.search(r'Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none';")
    for script in page.scripts[2:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy.replace("&#43;", "+")
    assert len(html) < 100_000
    assert "innerHTML" not in html


def test_a_directory_is_no_place_for_a_report(tmp_path, healthy):
    with pytest.raises(InputError, match="name a file"):
        write_report(healthy, tmp_path)


def test_the_picture_of_fibers_in_the_folder_of_the_run_is_shown(faulty):
    picture = faulty.path.parent / "fibers.png"
    assert "img" not in Page(render_report(faulty)).tags
    picture.write_bytes(b"<script>alert(1)</script>")
    assert "img" not in Page(render_report(faulty)).tags
    content = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
    picture.write_bytes(content)
    page = Page(render_report(faulty))
    assert ("src", f"data:image/png;base64,{base64.b64encode(content).decode()}") in page.attributes
    assert "What the layer no longer sees" in page.text
