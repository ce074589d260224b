"""Pictures of one measurement: spectrum, angles of class centres, class clouds with anchors, class dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.measure.snapshot import Plane, Snapshot
from geomonitor.plots.drawing import COLORS, axes_on, look, require_matplotlib, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.figure import Figure as Picture

SMALLEST_EIGENVALUE = 1e-12
"""Share of the largest eigenvalue below which one is rounding and not drawn."""
MOST_NUMBERS = 12
"""Classes up to which the cells of the matrix hold their number."""
MOST_LABELS = 20
"""Classes up to which each has its label on the axis."""


def plot_spectrum(
    snapshot: Snapshot, reference: Snapshot | None = None, *, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Eigenvalues of the covariance over their rank, both axes logarithmic, against an earlier measurement.

    Args:
        snapshot: to draw.
        reference: an earlier one of the same layer.
        ax: where to draw; by default a new figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    _require_snapshots(snapshot, reference)
    figure, ax = axes_on(ax)
    drawn = [(reference, "0.55", "--", "reference, ")] if reference is not None and reference is not snapshot else []
    for one, color, line, name in [*drawn, (snapshot, COLORS[0], "-", "")]:
        values = one.eigenvalues[one.eigenvalues > SMALLEST_EIGENVALUE * one.eigenvalues.max()].numpy()
        ranks = np.arange(1, len(values) + 1)
        ax.plot(ranks, values, color=color, linestyle=line, marker=".", markersize=4, label=name + one.when)
    ax.set(xscale="log", yscale="log")
    ax.grid(which="major", color="0.92", linewidth=0.6)
    ax.legend(frameon=False, fontsize="small", loc="lower left")
    tidy(ax, title=f"spectrum of {snapshot.layer}", xlabel="rank", ylabel="eigenvalue of the covariance")
    return figure, ax


def plot_class_matrix(snapshot: Snapshot, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Cosines of the class centres, as seen from their mean; a simplex has ``-1 / (P - 1)`` beside the diagonal.

    Args:
        snapshot: to draw.
        ax: where to draw; by default a new figure.

    Raises:
        InputError: a snapshot that was kept as a reference only.
        ImportError: matplotlib is missing.
    """
    _require_snapshots(snapshot)
    if snapshot.center_cosines is None:
        raise InputError("this snapshot was kept as a reference only: it holds no cosines of class centres")
    figure, ax = axes_on(ax, size=(4.6, 4.0))
    cosines = snapshot.center_cosines.numpy()
    count = len(cosines)
    image = ax.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(image, ax=ax, shrink=0.85, label="cosine")
    if count <= MOST_NUMBERS:
        for row, column in np.ndindex(count, count):
            value = cosines[row, column]
            ink = "white" if abs(value) > 0.6 else "black"
            text = f"{value:.2f}".replace("0.", ".") if np.isfinite(value) else "-"
            ax.text(column, row, text, ha="center", va="center", color=ink, fontsize="x-small")
    places = _some_places(count)
    ax.set_xticks(places, [str(snapshot.classes[place]) for place in places])
    ax.set_yticks(places, [str(snapshot.classes[place]) for place in places])
    tidy(ax, title=f"class centres of {snapshot.layer}, {snapshot.when}", xlabel="class", ylabel="class")
    return figure, ax


def plot_class_clouds(snapshot: Snapshot, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Points (faint), anchors (rimmed) and centres (crosses) of classes, in the plane of the leading centre directions.

    Args:
        snapshot: to draw.
        ax: where to draw; by default a new figure.

    Raises:
        InputError: a snapshot that was kept as a reference only.
        ImportError: matplotlib is missing.
    """
    _require_snapshots(snapshot)
    if snapshot.plane is None:
        raise InputError("this snapshot was kept as a reference only: it holds no points")
    figure, ax = axes_on(ax, size=(5.4, 4.6))
    plane = snapshot.plane
    for number in range(len(plane.centers)):
        _draw_class(ax, plane, number, str(snapshot.classes[number]))
    ax.plot([], [], "o", color="0.6", alpha=0.5, markersize=4, label="points")
    ax.plot([], [], "o", color="0.6", markeredgecolor="black", markersize=4, label="anchors")
    ax.plot([], [], "+", color="black", markersize=7, mew=2, label="centre")
    ax.legend(frameon=False, fontsize="small", loc="best")
    ax.set_aspect("equal", adjustable="datalim")
    left_out = len(snapshot.classes) - len(plane.centers)
    more = f" ({left_out} more classes)" if left_out else ""
    share = [f"{float(part):.0%} of the centres' variance" for part in plane.share]
    tidy(
        ax,
        title=f"classes of {snapshot.layer}, {snapshot.when}{more}",
        xlabel=f"1st direction of the centres\n{share[0]}",
        ylabel=f"2nd direction of the centres\n{share[1]}",
    )
    return figure, ax


def _draw_class(ax: Axes, plane: Plane, number: int, name: str) -> None:
    color, _, shape = look(number)
    points = plane.points[plane.point_classes == number].numpy()
    anchors = plane.anchors[:, number].numpy()
    center = plane.centers[number].numpy()
    ax.scatter(points[:, 0], points[:, 1], s=14, marker=shape, color=color, alpha=0.3, linewidths=0)
    ax.scatter(anchors[:, 0], anchors[:, 1], s=18, marker=shape, color=color, edgecolors="black", linewidths=0.6)
    ax.plot(center[0], center[1], "+", color="black", markersize=9, mew=2)
    ax.annotate(
        name,
        (float(center[0]), float(center[1])),
        xytext=(9, 9),
        textcoords="offset points",
        ha="center",
        va="center",
        fontweight="bold",
        bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": color, "alpha": 0.85},
    )


def plot_class_dimensions(
    snapshot: Snapshot, reference: Snapshot | None = None, *, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Participation ratio of the points of each class, largest first, against an earlier measurement.

    Args:
        snapshot: to draw.
        reference: an earlier one of the same layer and classes.
        ax: where to draw; by default a new figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    _require_snapshots(snapshot, reference)
    figure, ax = axes_on(ax)
    order = torch.argsort(snapshot.class_dimensions.nan_to_num(-1.0), descending=True)
    places = np.arange(len(order))
    if reference is not None and reference is not snapshot and reference.classes == snapshot.classes:
        earlier = reference.class_dimensions[order].numpy()
        ax.plot(places, earlier, "_", color="0.45", markersize=11, mew=2, label=f"reference, {reference.when}")
    dimensions = snapshot.class_dimensions[order].numpy()
    ax.plot(places, dimensions, "o", color=COLORS[0], label=snapshot.when)
    mean = snapshot.class_dimensions.nanmean().item()
    ax.axhline(mean, color=COLORS[0], linewidth=1, linestyle=":", label=f"mean {mean:.2f}")
    some = _some_places(len(order))
    ax.set_xticks(some, [str(snapshot.classes[int(order[place])]) for place in some])
    ax.margins(y=0.1)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize="small")
    tidy(ax, title=f"dimension of each class in {snapshot.layer}", xlabel="class", ylabel="participation ratio")
    return figure, ax


def _require_snapshots(snapshot: object, reference: object = None) -> None:
    _options.instance("snapshot", snapshot, Snapshot, "a Snapshot, such as take_snapshot(features, labels)")
    if reference is not None:
        _options.instance("reference", reference, Snapshot, "a Snapshot of the same layer, or None")


def _some_places(count: int) -> list[int]:
    """Places of the ticks: all, or evenly spread ones if there are many."""
    return list(range(0, count, max(1, -(-count // MOST_LABELS))))


FIGURES = ("spectrum", "class_centers", "class_clouds", "class_dimensions")
"""The pictures of a snapshot by name, as loggers show them."""


def figure_of(name: str, snapshot: Snapshot, reference: Snapshot | None = None) -> Picture:
    """One of ``FIGURES``, on a figure that ``pyplot`` does not know, so that it need not be closed.

    Raises:
        InputError: no such name; no snapshot.
        ImportError: matplotlib is missing.
    """
    _options.one_of("name", name, FIGURES)
    _require_snapshots(snapshot, reference)
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.9), dpi=140, layout="constrained")
    ax = figure.add_subplot()
    if name == "spectrum":
        plot_spectrum(snapshot, reference, ax=ax)
    elif name == "class_centers":
        plot_class_matrix(snapshot, ax=ax)
    elif name == "class_clouds":
        plot_class_clouds(snapshot, ax=ax)
    else:
        plot_class_dimensions(snapshot, reference, ax=ax)
    return figure
