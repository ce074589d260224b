"""The picture of a comparison of fibers: representative | members before | members after | real neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.explain.comparison import Comparison, Side
from geomonitor.plots.drawing import COLORS, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

MOST_ROWS = 6
MOST_MEMBERS = 4
INCH = 0.72
"""Side of one image."""


def plot_fibers(
    comparison: Comparison, *, rows: int = MOST_ROWS, members: int = MOST_MEMBERS, low: float = 0.0, high: float = 1.0
) -> Figure:
    """Draw the fibers of a few representatives, with the relative loss under each image.

    No member is left out: the caption has the number of those that are no natural inputs.

    Args:
        comparison: of one layer before and after.
        rows: representatives that are shown, spread over all of them.
        members: of each fiber and side.
        low: value drawn as white.
        high: value drawn as black.

    Returns:
        A figure that no window shows.

    Raises:
        ImportError: matplotlib is missing.
        InputError: inputs that are no images (C, H, W) with one or three channels.
    """
    _options.instance("comparison", comparison, Comparison, "what compare_fibers returns")
    require_matplotlib()
    from matplotlib.figure import Figure

    checked_images(comparison.representatives.shape[1:])
    sides = {"before": comparison.before, "after": comparison.after}
    shown = {name: comparison.shown(side) for name, side in sides.items()}
    count = len(comparison.representatives)
    rows, members = min(_options.whole("rows", rows), count), _options.whole("members", members)
    members = min(members, shown["before"].samples.shape[1])
    chosen = torch.linspace(0, count - 1, rows).round().long().tolist()
    columns = 1 + 2 * members + 2
    figure = Figure(figsize=(INCH * (columns + 1.6), INCH * (1.18 * rows) + 1.15), layout=None)
    widths = [1, 0.25, *[1] * members, 0.25, *[1] * members, 0.25, 1, 1]
    top = 1 - 0.62 / figure.get_figheight()
    grid = figure.add_gridspec(
        rows, len(widths), width_ratios=widths, wspace=0.06, hspace=0.3, left=0.02, right=0.98, top=top,
        bottom=0.62 / figure.get_figheight(),
    )  # fmt: skip
    starts = {"before": 2, "after": 3 + members}
    for line, place in enumerate(chosen):
        draw = _Row(figure, grid, line, low, high)
        draw.image(0, comparison.representatives[place], "", "input" if line == 0 else "")
        for number, (name, side) in enumerate(sides.items()):
            for member in range(members):
                loss = float(shown[name].relative_loss[place, member])
                title = name if line == 0 and member == 0 else ""
                draw.image(starts[name] + member, shown[name].samples[place, member], _loss(loss), title, number)
            neighbour = comparison.pool[side.neighbours.place[place]]
            title = f"nearest real\n{name}" if line == 0 else ""
            draw.image(4 + 2 * members + number, neighbour, _loss(float(side.neighbour_losses[place])), title, number)
    figure.text(0.02, 0.12 / figure.get_figheight(), _caption(comparison, sides), fontsize=7, va="bottom")
    return figure


def checked_images(shape: Sequence[int]) -> None:
    """Refuse inputs that cannot be drawn.

    Raises:
        InputError: the shape is not that of an image.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(
            f"a picture needs images (C, H, W) of one or three channels; got inputs of shape {tuple(shape)}"
        )


class _Row:
    """The images of one representative."""

    def __init__(self, figure: Figure, grid: GridSpec, line: int, low: float, high: float) -> None:
        self.figure, self.grid, self.line, self.low, self.high = figure, grid, line, low, high

    def image(self, column: int, pixels: Tensor, below: str, title: str, color: int | None = None) -> None:
        """One image with its loss under it."""
        ax = self.figure.add_subplot(self.grid[self.line, column])
        scaled = ((pixels.float() - self.low) / (self.high - self.low)).nan_to_num(nan=1.0).clamp(0, 1)
        ax.imshow(scaled.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel(below, fontsize=6, labelpad=1.5)
        ax.set_title(title, fontsize=8, loc="left", pad=3)
        if color is not None:
            for spine in ax.spines.values():
                spine.set_color(COLORS[color])


def _loss(loss: float) -> str:
    return "not finite" if math.isnan(loss) else f"{loss:.1e}" if loss < 1e-3 else f"{loss:.3f}"


def _caption(comparison: Comparison, sides: dict[str, Side]) -> str:
    refused = ", ".join(
        f"{int(comparison.refused(side).sum())} of {comparison.refused(side).numel()} {name}"
        for name, side in sides.items()
    )
    return (
        f"{comparison.sentence}\nUnder each image: squared distance of the features to the input's, divided by the "
        f"mean over pairs. Members that are no natural inputs: {refused}."
    )
