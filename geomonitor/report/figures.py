"""The curves of a report as plain values, which ``page.js`` draws. Colours are numbers: the style sheet has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor.history.printable import printable
from geomonitor.history.records import Series
from geomonitor.history.runs import Run
from geomonitor.report.findings import TERMS, Decomposition

BAND_ERRORS = 2
"""Half the height of a band, in standard errors: about 95 % of a normal distribution."""
MOST_POINTS = 1000
"""Measurements that a curve shows: a page is not much wider in pixels."""
EARLY, MOST_EARLY = 0.15, 0.5
"""Share of the measurements that are early, and of an axis that they may take."""
LEAST = 10
"""A curve of fewer measurements is shown whole."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


class Curve(NamedTuple):
    """What is drawn in one colour and dash: a layer of a run."""

    run: int
    layer: str
    label: str
    color: int
    dash: str


def curves(runs: Sequence[Run], labels: Sequence[str]) -> list[Curve]:
    """One curve a layer and run: with one run the colours are layers, with several the runs, and dashes the layers."""
    layers = list(dict.fromkeys(layer for run in runs for layer in run.history.layers))
    drawn = []
    for number, run in enumerate(runs):
        for layer in run.history.layers:
            place = layers.index(layer)
            if len(runs) == 1:
                drawn.append(Curve(number, layer, layer, place, "solid"))
            else:
                label = f"{labels[number]}: {layer}" if len(layers) > 1 else labels[number]
                drawn.append(Curve(number, layer, label, number, DASHES[place % len(DASHES)]))
    return drawn


def clock(runs: Sequence[Run]) -> str:
    """``"epoch"`` if every measurement of every run has one of its own, otherwise ``"step"``."""
    for run in runs:
        for layer in run.history.layers:
            for marker in run.history.markers(layer):
                epochs = run.history.series(layer, marker).epochs
                if not np.isfinite(epochs).all() or (np.diff(epochs) <= 0).any():
                    return "step"
    return "epoch"


def marker_figure(
    runs: Sequence[Run], drawn: Sequence[Curve], marker: str, x: str, alarms: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """A marker over the run, with bands of ``BAND_ERRORS`` standard errors and a line at each alarm."""
    traces: list[dict[str, Any]] = []
    for curve in drawn:
        series = thinned(runs[curve.run].history.series(curve.layer, marker))
        if not np.isfinite(series.values).any():
            continue
        time = times(series, x)
        if np.isfinite(series.standard_errors).any():
            band_x, band_y = _band(time, series)
            traces.append({
                "type": "scatter", "x": band_x, "y": band_y, "fill": "toself", "mode": "lines", "line": {"width": 0},
                "hoverinfo": "skip", "showlegend": False, "meta": {"color": curve.color, "band": True},
            })  # fmt: skip
        name = printable(curve.label)
        traces.append({
            "type": "scatter", "x": time.tolist(), "y": _display(series.values), "mode": "lines+markers", "name": name,
            "line": {"dash": curve.dash}, "meta": {"color": curve.color},
        })  # fmt: skip
    return _figure(traces, x, alarm_shapes(alarms))


def decomposition_figure(
    parts: Decomposition, series: Series, x: str, alarms: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """The change of log capacity since the reference, and its three terms."""
    kept = _kept(len(parts.places))
    time = times(series, x)[parts.places][kept].tolist()
    traces: list[dict[str, Any]] = [{
        "type": "scatter", "x": time, "y": _display(parts.total[kept]), "name": "log capacity", "mode": "lines",
        "line": {"width": 4}, "meta": {"color": "text"},
    }]  # fmt: skip
    for number, (name, values) in enumerate(zip(TERMS, parts.terms, strict=True)):
        traces.append({
            "type": "scatter", "x": time, "y": _display(values[kept]), "name": name, "mode": "lines+markers",
            "line": {"dash": DASHES[number]}, "meta": {"color": number},
        })  # fmt: skip
    zero = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": {"width": 1, "dash": "dot"}}
    return _figure(traces, x, [zero, *alarm_shapes(alarms)])


def times(series: Series, x: str) -> NDArray[np.float64]:
    """Position of the measurements on the axis ``"epoch"`` or ``"step"``."""
    return series.epochs if x == "epoch" else series.steps.astype(np.float64)


def thinned(series: Series) -> Series:
    """At most ``MOST_POINTS`` measurements of a series, evenly spread, with the first and the last one."""
    kept = _kept(len(series.steps))
    return series._replace(
        steps=series.steps[kept],
        epochs=series.epochs[kept],
        values=series.values[kept],
        standard_errors=series.standard_errors[kept],
    )


def _kept(count: int) -> NDArray[np.int64]:
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.linspace(0, count - 1, MOST_POINTS).astype(np.int64)


def _figure(traces: list[dict[str, Any]], x: str, shapes: list[dict[str, Any]]) -> dict[str, Any]:
    curves = [trace for trace in traces if not trace["meta"].get("band")]
    places = [place for trace in curves for place in trace["x"]]
    axis = {"title": {"text": x}, "range": _padded(min(places, default=0.0), max(places, default=1.0), 0.02)}
    return {"data": traces, "layout": {"shapes": shapes, "xaxis": axis, "yaxis": {"range": value_range(traces)}}}


def value_range(traces: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Lowest and highest value that an axis shows.

    All values, unless those of the first ``EARLY`` of the measurements, while the classes form, would make up more than
    ``MOST_EARLY`` of the axis: these are beyond it then. The bands of the others are shown whole.

    >>> [round(limit, 2) for limit in value_range([{"y": [9.0, 5.0, *[2.0, 1.9, 1.8, 1.0] * 3], "meta": {}}])]
    [0.95, 2.05]
    """
    known = [value for trace in traces for value in trace["y"] if value is not None]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    ends = [_end(trace) for trace in traces if not trace["meta"].get("band")]
    start = min((x for end in ends for x, _ in end), default=math.inf)
    bands = [_points(trace) for trace in traces if trace["meta"].get("band")]
    late = [y for end in ends for _, y in end] + [y for band in bands for x, y in band if x >= start]
    if late and (max(late) - min(late)) < (1 - MOST_EARLY) * (high - low):
        low, high = min(late), max(late)
    return _padded(low, high, 0.05)


def _points(trace: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The defined points of a trace."""
    places = trace.get("x", range(len(trace["y"])))
    return [(x, y) for x, y in zip(places, trace["y"], strict=True) if y is not None]


def _end(trace: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The points after the first ``EARLY`` of a curve; all of them if there are fewer than ``LEAST``."""
    known = _points(trace)
    return known[math.ceil(EARLY * len(known)) :] if len(known) >= LEAST else known


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    room = share * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def alarm_shapes(alarms: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    """A line at each alarm, and a shade while it lasts."""
    lines = [{"type": "line", "name": "alarm", "x0": start, "x1": start} for start, _ in alarms]
    return [*({"type": "rect", "name": "alarm", "x0": start, "x1": end} for start, end in alarms), *lines]


def _band(x: NDArray[np.float64], series: Series) -> tuple[list[float | None], list[float | None]]:
    """Closed outlines, one for each stretch in which value and error are finite, apart by None."""
    finite = np.isfinite(series.values) & np.isfinite(series.standard_errors)
    outline_x: list[float | None] = []
    outline_y: list[float | None] = []
    for stretch in np.split(np.arange(len(x)), np.flatnonzero(np.diff(finite)) + 1):
        if not finite[stretch[0]]:
            continue
        half = BAND_ERRORS * series.standard_errors[stretch]
        upper, lower = series.values[stretch] + half, (series.values[stretch] - half)[::-1]
        separator: list[float | None] = [None] if outline_x else []
        outline_x += [*separator, *x[stretch].tolist(), *x[stretch][::-1].tolist()]
        outline_y += [*separator, *_display(upper), *_display(lower)]
    return outline_x, outline_y


def _display(values: NDArray[np.float64]) -> list[float | None]:
    """Six digits: enough for the eye, and a third of the size."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
