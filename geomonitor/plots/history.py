"""Curves over a run: markers with error bands and alarms, and what the capacity is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from geomonitor import _options
from geomonitor.alarms.alarm import recorded_alarms
from geomonitor.errors import InputError
from geomonitor.history.history import History
from geomonitor.history.records import Series
from geomonitor.plots.curves import band, decomposition
from geomonitor.plots.drawing import COLORS, axes_on, look, require_matplotlib, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 3
PANEL_INCHES = (4.0, 2.8)
LONE_POINTS = 60
"""Measurements up to which each one gets a dot."""
NOT_DRAWN = ("alarm", "seconds")


def plot_history(
    history: History, markers: str | Sequence[str] | None = None, layers: str | Sequence[str] | None = None
) -> tuple[Figure, list[Axes]]:
    """Markers over optimiser steps: a panel for each marker, a curve with its error band for each layer.

    A failed measurement leaves a gap. While the alarm of a layer is on its curve is underlaid in grey, and the
    measurement that raised it has a ring.

    Args:
        history: of a run.
        markers: names of markers, by default all that the history holds.
        layers: aliases of layers, by default all.

    Returns:
        the figure and its panels, in the order of ``markers``.

    Raises:
        InputError: a marker or layer that the history does not hold.
        ImportError: matplotlib is missing.
    """
    _options.instance("history", history, History, "a History, such as monitor.history")
    shown = _chosen(markers, [r.marker for r in history if r.layer and r.marker not in NOT_DRAWN], "marker")
    of_layers = _chosen(layers, [r.layer for r in history if r.layer], "layer")
    require_matplotlib()
    import matplotlib.pyplot as plt

    columns = min(len(shown), MOST_COLUMNS)
    rows = -(-len(shown) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=True,
        layout="constrained",
        figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows),
    )
    panels = list(grid.flat)
    for ax in panels[len(shown) :]:
        ax.remove()
    for ax, marker in zip(panels, shown, strict=False):
        for number, layer in enumerate(of_layers):
            _draw_series(ax, history, history.series(layer, marker), number)
        ax.tick_params(labelbottom=True)
        tidy(ax, title=marker.replace("_", " "), xlabel="optimiser steps", ylabel="")
    if len(of_layers) > 1 or any(recorded_alarms(history, layer) for layer in of_layers):
        panels[0].legend(frameon=False, fontsize="small")
    return figure, panels[: len(shown)]


def _chosen(wanted: str | Sequence[str] | None, there: Sequence[str], kind: str) -> list[str]:
    known = list(dict.fromkeys(there))
    names = known if wanted is None else _options.names(f"{kind}s", wanted, repr(known[:2]))
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise InputError(f"the history holds no {kind} {', '.join(map(repr, missing))}; it holds {known}")
    return names


def _draw_series(ax: Axes, history: History, series: Series, number: int) -> None:
    color, line, _ = look(number)
    dot = "." if len(series.steps) <= LONE_POINTS else ""
    ax.plot(series.steps, series.values, color=color, linestyle=line, marker=dot, label=series.layer)
    if np.isfinite(series.standard_errors).any():
        lower, upper = band(series)
        ax.fill_between(series.steps, lower, upper, color=color, alpha=0.2, linewidth=0)
    for count, alarm in enumerate(recorded_alarms(history, series.layer)):
        end = max([alarm.step, *series.steps.tolist()]) if alarm.end_step is None else alarm.end_step
        ax.axvspan(alarm.step, end, color="0.5", alpha=0.12, linewidth=0)
        ax.axvline(alarm.step, color="0.3", linewidth=0.8, linestyle=":")
        at = np.flatnonzero(series.steps == alarm.step)
        label = None if count else f"alarm at step {alarm.step}"
        ax.plot(
            series.steps[at], series.values[at], "o", color=color, markersize=10, fillstyle="none", mew=2, label=label
        )


def plot_decomposition(
    history: History, layer: str = "penultimate", *, reference: int | None = None, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Why the capacity changed: ``log utility``, ``log(1 + radius^-2)`` and ``-log dimension`` add up to its logarithm.

    Args:
        history: with the markers capacity, dimension, radius and utility of the layer.
        layer: alias of the layer.
        reference: step of the measurement from which changes count; by default the first one without NaN.
        ax: where to draw; by default a new figure.

    Raises:
        InputError: one of the four markers was not recorded, or no measurement at ``reference``.
        ImportError: matplotlib is missing.
    """
    _options.instance("history", history, History, "a History, such as monitor.history")
    reference = _options.whole_or_none("reference", reference, least=0)
    parts = decomposition(history, layer).since(reference)
    figure, ax = axes_on(ax, size=(6.8, 3.6))
    for number, (name, values) in enumerate(
        [
            ("utility", parts.log_utility),
            (r"$1 + 1 / \mathrm{radius}^2$", parts.log_radius_factor),
            ("1 / dimension", parts.minus_log_dimension),
        ]
    ):
        color, line, shape = look(number)
        ax.plot(parts.steps, values, color=color, linestyle=line, marker=shape, markersize=3.5, label=name)
    ax.plot(parts.steps, parts.log_capacity, color="black", linewidth=2.5, alpha=0.8, label="capacity (their product)")
    for count, alarm in enumerate(recorded_alarms(history, layer)):
        label = None if count else f"alarm at step {alarm.step}"
        ax.axvline(alarm.step, color=COLORS[1], linewidth=1.2, linestyle=(0, (1, 1.5)), label=label)
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    start = f"step {reference}" if reference is not None else "the first measurement"
    tidy(
        ax,
        title=f"capacity of {layer} and its factors",
        xlabel="optimiser steps",
        ylabel=f"change of log since\n{start}",
    )
    return figure, ax
