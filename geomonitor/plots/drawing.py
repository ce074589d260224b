"""What all plots share: axes to draw on, colours that colour-blind eyes and grey prints tell apart, pictures as pixels.

matplotlib is imported on first use and its backend is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor import _options

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito 2008, without the yellow that white paper swallows: apart for colour-blind eyes."""
LINES = ("-", "--", "-.", ":")
"""Line styles: different in a grey print, in which the colours are not."""
SHAPES = ("o", "s", "^", "D", "v")
"""Marker shapes, five to seven colours, so that the pairs repeat after 35."""

BAND_SIGMAS = 2.0
"""Half the width of an error band in standard errors: about 95 % of a Gaussian."""


class Look(NamedTuple):
    """How one of several things is drawn."""

    color: str
    line: str
    shape: str


def look(number: int) -> Look:
    """The look of the thing with this number, from 0.

    >>> look(1)
    Look(color='#D55E00', line='--', shape='s')
    """
    return Look(COLORS[number % len(COLORS)], LINES[number % len(LINES)], SHAPES[number % len(SHAPES)])


def require_matplotlib() -> None:
    """Raise an error that names the package if matplotlib is missing.

    Raises:
        ImportError: it is; the message holds the pip command.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError('matplotlib is missing: pip install "geomonitor[plots]"') from error


def axes_on(ax: Axes | None, *, size: tuple[float, float] = (5.0, 3.6)) -> tuple[Figure, Axes]:
    """The axes that were given, or new ones that ``pyplot`` shows.

    Args:
        ax: where to draw, or None.
        size: of a new figure, in inches.

    Raises:
        ImportError: matplotlib is missing.
    """
    require_matplotlib()
    if ax is not None:
        import matplotlib.axes

        _options.instance("ax", ax, matplotlib.axes.Axes, "axes of matplotlib, or None for a new figure")
        figure = ax.get_figure(root=True) if hasattr(ax.figure, "get_figure") else ax.figure
        assert figure is not None  # axes in use have one
        return figure, ax  # type: ignore[return-value]
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")


def tidy(ax: Axes, *, title: str, xlabel: str, ylabel: str) -> None:
    """Titles, and no more ink than the data need."""
    ax.set_title(title, fontsize="medium")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure as a picture ``(height, width, 3)``, without a window and whatever backend the user has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    picture: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
    return picture


def plot_values(values: Mapping[str, Any] | Sequence[Mapping[str, Any]], ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Markers of one ``compute`` as a row each, with their error bands; of several as curves over the calls.

    Markers have no common unit. One result is drawn on an axis that is linear around 0 and logarithmic beyond, the
    number beside each dot; several results as the change of each marker relative to the first.

    Args:
        values: by name, what converts to a float; ``<name>_standard_error`` is the error of ``<name>``.
        ax: where to draw; by default a new figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, ax = axes_on(ax)
    if isinstance(values, Mapping):
        _draw_rows(ax, {name: float(value) for name, value in values.items()})
    else:
        _draw_curves(ax, [{name: float(value) for name, value in result.items()} for result in values])
    return figure, ax


ERROR = "_standard_error"


def _draw_rows(ax: Axes, values: dict[str, float]) -> None:
    names = [name for name in values if not name.endswith(ERROR)]
    places = np.arange(len(names))
    shown = np.array([values[name] for name in names])
    errors = BAND_SIGMAS * np.nan_to_num([values.get(name + ERROR, 0.0) for name in names])
    ax.errorbar(shown, places, xerr=errors, fmt="o", color=COLORS[0], capsize=3)
    ax.set_xscale("symlog", linthresh=1.0)
    for place, value in zip(places, shown, strict=True):
        text = f"{value:.3g}" if np.isfinite(value) else "undefined"
        ax.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize="small")
    ax.set_yticks(places, names, fontsize="small")
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", color="0.9", linewidth=0.6)
    tidy(ax, title="", xlabel="value (logarithmic beyond 1)", ylabel="")


def _draw_curves(ax: Axes, results: list[dict[str, float]]) -> None:
    names = [name for name in (results[0] if results else ()) if not name.endswith(ERROR)]
    for number, name in enumerate(names):
        curve = np.array([result.get(name, np.nan) for result in results])
        color, line, shape = look(number)
        with np.errstate(divide="ignore", invalid="ignore"):
            change = curve / curve[0] - 1
        ax.plot(change, color=color, linestyle=line, marker=shape, markersize=3, label=name)
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.yaxis.set_major_formatter(lambda change, _: f"{change:+.0%}")
    if names:
        ax.legend(frameon=False, fontsize="x-small", ncols=1 + (len(names) > 8))
    tidy(ax, title="", xlabel="result", ylabel="change since the first")
