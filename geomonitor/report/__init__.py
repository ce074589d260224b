"""A run as one HTML file that needs no network. Needs the extra ``report`` (jinja2)."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from geomonitor.alarms.panel import panel_of
from geomonitor.history.printable import printable
from geomonitor.history.records import ALARM, JUDGED, NOTICE
from geomonitor.history.runs import Run
from geomonitor.markers import MARKER_GROUPS, MARKERS
from geomonitor.markers.table import BESIDE, TRUTH
from geomonitor.measure.protocol import differences
from geomonitor.report import findings
from geomonitor.report.template import PAGE, checked_path, rendered, write_page

if TYPE_CHECKING:
    from geomonitor.report.figures import Curve

MOST_CURVES, MOST_MARKERS, MOST_ALARMS, MOST_SETTINGS = 60, 100, 50, 200
"""What a page shows: more layers, markers, alarms and settings than these are counted, and left out."""
FIBERS_FILE, MOST_FIBERS = "fibers.png", 4 * 2**20
"""Picture beside the history that ``geomonitor fibers`` writes, and its bytes at most: a page holds it whole."""
_PNG = b"\x89PNG\r\n\x1a\n"
_TABLE = MappingProxyType({**BESIDE, **MARKERS})
_ARROWS = MappingProxyType({"lower": "↓", "higher": "↑"})
_SHOWN = (*TRUTH, *MARKER_GROUPS["default"])
"""Markers whose curves are open when the page is opened; the truth, if it was measured, comes first."""


def write_report(run: Run, path: str | os.PathLike[str], *, compare: Sequence[Run] = ()) -> Path:
    """Write the report of a run to a file.

    Args:
        run: from :func:`geomonitor.history.runs.load_run`.
        path: of the HTML file; about 60 kB for a run of some dozens of measurements.
        compare: other runs to draw beside it.

    Returns:
        The path.

    Raises:
        InputError: the path is a directory.
    """
    path = checked_path(path, "report.html")
    return write_page(path, render_report(run, compare=compare))


def render_report(run: Run, *, compare: Sequence[Run] = ()) -> str:
    """The report of a run as HTML; every name and value that comes from a run is escaped."""
    from geomonitor.report import figures

    runs = [run, *compare]
    labels = findings.labels(runs)
    curves, every_marker = figures.curves(runs, labels), _markers(runs)
    drawn, names = curves[:MOST_CURVES], every_marker[:MOST_MARKERS]
    x = figures.clock(runs)
    panel = panel_of(run.panel)
    raised = findings.alarms(run.history, panel)
    alarms = raised if len(raised) <= MOST_ALARMS else [*raised[: MOST_ALARMS // 2], *raised[-MOST_ALARMS // 2 :]]
    places = findings.spans(run.history, alarms, x)
    status = findings.status(run)
    hot = [name for name in findings.triggered(raised, status) if name in names]
    names = [*hot, *(name for name in names if name not in hot)]
    shown_layers = [curve.layer for curve in drawn if curve.run == 0]
    parts = [p for layer in shown_layers if (p := findings.decomposition(run.history, layer, panel))]
    sinces = [_since(runs[curve.run], curve.layer) for curve in drawn]
    protocol = _protocol(runs)
    longest = max((run_.history.longest for run_ in runs), default=0)
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    return rendered(
        "page.html.j2",
        labels=labels,
        status=status,
        facts=[*([f"run {run.id}"] if run.id else []), *findings.facts(run.history)],
        fibers=_fibers(run.path.parent / FIBERS_FILE),
        hot=hot,
        arrows={name: _ARROWS.get(_TABLE[name].worse or "", "") if name in _TABLE else "" for name in names},
        left_out=[
            f"{count - most} of {count} {what}"
            for what, count, most in (
                ("layers", len(curves), MOST_CURVES),
                ("markers", len(every_marker), MOST_MARKERS),
                ("alarms (those in the middle)", len(raised), MOST_ALARMS),
                ("settings", len(protocol), MOST_SETTINGS),
                ("measurements, evenly spread", longest, figures.MOST_POINTS),
            )
            if count > most
        ],
        alarms=[
            (
                alarm,
                findings.moment(alarm.step, alarm.epoch),
                *findings.words(run.history, alarm, panel, run.last_healthy),
            )
            for alarm in alarms
        ],
        judged=any(ALARM in run.history.markers(layer) for layer in run.history.layers),
        curves=drawn,
        band=figures.BAND_ERRORS,
        figures={printable(name): figures.marker_figure(runs, drawn, name, x, places) for name in names},
        about={name: _TABLE[name].description if name in _TABLE else "" for name in names},
        shown=[name for name in names if name in (*_SHOWN, *hot)],
        folded=[name for name in names if name not in (*_SHOWN, *hot)],
        decompositions=[
            (p, figures.decomposition_figure(p, run.history.series(p.layer, "capacity"), x, places), _terms(run, p))
            for p in parts
        ],
        ends=[
            _end(runs, curve, name, since)
            for name in names
            if name not in (JUDGED, NOTICE)  # 0 or 1: a change in per cent means nothing
            for curve, since in zip(drawn, sinces, strict=True)
        ],
        protocol=protocol[:MOST_SETTINGS],
        overheads=[(label, findings.overhead(r.history)) for label, r in zip(labels, runs, strict=True)],
        script=script,
        script_hash=_hash(script),
        isfinite=math.isfinite,
    )


def _fibers(picture: Path) -> str:
    """The picture in base64; "" if there is none, or a file of that name is no PNG of that size."""
    try:
        if picture.stat().st_size > MOST_FIBERS:
            return ""
        content = picture.read_bytes()
    except OSError:
        return ""
    return base64.b64encode(content).decode() if content.startswith(_PNG) else ""


def _markers(runs: Sequence[Run]) -> list[str]:
    """Measured markers in the order of the table, then those that it does not have."""
    found = {name for run in runs for layer in run.history.layers for name in run.history.markers(layer)} - {ALARM}
    return [name for name in _TABLE if name in found] + sorted(found - _TABLE.keys())


def _since(run: Run, layer: str) -> int | None:
    """The first step of the decline of a layer at the end of a run; None if there is none."""
    verdict = findings.verdict_of(run.history, layer, panel_of(run.panel))
    return verdict.since_step if verdict and (verdict.declined or verdict.noticed) else None


def _end(runs: Sequence[Run], curve: Curve, marker: str, since_step: int | None) -> dict[str, Any]:
    """A marker at the last measurement, and its reference."""
    series = runs[curve.run].history.series(curve.layer, marker)
    before, last = findings.reference(series, since_step)
    change = last / before - 1 if before else math.nan
    row = _TABLE.get(marker)
    return {
        "marker": marker, "curve": curve.label, "worse": (row and row.worse) or "",
        "measured": bool(len(series.values)),
        "reference": _value(before), "last": _value(last),
        "change": f"{change:+.1%}".replace("%", " %") if math.isfinite(change) else "",
    }  # fmt: skip


def _terms(run: Run, parts: findings.Decomposition) -> dict[str, Any]:
    """The decomposition at the last measurement, in words and numbers."""
    series = run.history.series(parts.layer, "capacity")
    place = parts.places[parts.reference]
    epoch = series.epochs[place]
    return {
        "reference": findings.moment(int(series.steps[place]), int(epoch) if math.isfinite(epoch) else None),
        "total": float(parts.total[-1]),
        "factor": float(np.exp(parts.total[-1])),  # infinity, not an error, if it is too large
        "rows": [(name, float(term[-1])) for name, term in zip(findings.TERMS, parts.terms, strict=True)],
    }


def _protocol(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Settings: name, value in each run, whether they differ."""
    rows = []
    recorded = [{**run.protocol, **({} if run.panel is None else {"panel": run.panel})} for run in runs]
    differ = {name for one, other in itertools.combinations(recorded, 2) for name in differences(one, other)}
    for name in sorted({name for settings in recorded for name in settings}):
        cells = [_text(settings[name]) if name in settings else "" for settings in recorded]
        rows.append((name, cells, name in differ))
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "undefined"


def _hash(script: str) -> str:
    """What a Content-Security-Policy calls a script by: nothing else may run in the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
