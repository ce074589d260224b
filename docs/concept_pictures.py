"""Make the pictures of docs/concepts/four_numbers.md: clouds of points, and what the project measures on them.

    python docs/concept_pictures.py

Two panels show three of the classes, for a small and a large value of what is changed; the third one shows the number,
with two standard errors, from ``gm.manifold_geometry``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

import geomonitor as gm

FOLDER = Path(__file__).parent / "concepts"
CLASSES, POINTS, UNITS = 8, 40, 60
COLORS = ("#0072B2", "#D55E00", "#009E73")
Clouds = Callable[[float], tuple[torch.Tensor, torch.Tensor]]


def clouds(*, directions: float = 6, size: float = 1.0, distance: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``(Q, N)`` and labels: Gaussian clouds around random centres.

    Args:
        directions: in which a class varies.
        size: of the variation.
        distance: of the centres from their mean.
    """
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, UNITS, generator=random)
    centres /= centres.norm(dim=1, keepdim=True)
    axes = torch.linalg.qr(torch.randn(CLASSES, UNITS, UNITS, generator=random))[0][:, :, : int(directions)]
    spread = torch.randn(CLASSES, POINTS, int(directions), generator=random) / int(directions) ** 0.5
    points = distance * centres[:, None] + size * torch.einsum("pmd,pnd->pmn", spread, axes)
    return points.reshape(-1, UNITS).double(), torch.arange(CLASSES).repeat_interleave(POINTS)


class Picture(NamedTuple):
    """One number of the geometry, and what is changed."""

    marker: str
    changed: str
    values: Sequence[float]
    make: Clouds
    shown: tuple[float, float]
    title: str
    """of a panel with clouds, with a place for the value"""


PICTURES = (
    Picture("dimension", "directions in which a class varies", (1, 2, 3, 4, 6, 8, 12, 16, 24),
            lambda value: clouds(directions=value), (1, 12), "directions: {}"),
    Picture("radius", "size of a class, centres at distance 1", np.linspace(0.3, 3, 9),
            lambda value: clouds(size=value), (0.3, 1.5), "size {}"),
    Picture("utility", "size of a class, centres at distance 1", np.linspace(0.3, 2.5, 9),
            lambda value: clouds(size=value, directions=12), (0.3, 2), "size {}"),
    Picture("capacity", "distance of the centres, classes of size 1", np.linspace(0.1, 3, 9),
            lambda value: clouds(distance=value), (0.5, 3.0), "distance {}"),
)  # fmt: skip


def draw(picture: Picture, path: Path) -> None:
    """Two clouds and the curve of the number."""
    measured = [gm.manifold_geometry(*picture.make(value), directions=400) for value in picture.values]
    numbers = np.array([float(getattr(one, picture.marker)) for one in measured])
    errors = np.array([float(getattr(one.standard_error, picture.marker)) for one in measured])
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    small, large, curve = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    planes = [plane(*picture.make(value)) for value in picture.shown]
    most = 1.05 * max(float(abs(points).max()) for points in planes)
    for axis, value, points in zip((small, large), picture.shown, planes, strict=True):
        for number, color in enumerate(COLORS):
            axis.scatter(*points[number].T, s=9, color=color, alpha=0.75, linewidths=0)
        axis.set(
            title=picture.title.format(f"{value:g}"),
            xticks=[],
            yticks=[],
            xlim=(-most, most),
            ylim=(-most, most),
            aspect="equal",
        )
    curve.fill_between(picture.values, numbers - 2 * errors, numbers + 2 * errors, alpha=0.25, linewidth=0)
    curve.plot(picture.values, numbers, "o-", markersize=3.5)
    curve.axvline(picture.shown[0], color="0.7", linewidth=0.8, linestyle=":")
    curve.axvline(picture.shown[1], color="0.7", linewidth=0.8, linestyle=":")
    curve.set(xlabel=picture.changed, title=picture.marker, ylim=(0, None))
    curve.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    print(path, numbers.round(3))


def plane(features: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Three classes ``(3, M, 2)`` in the plane of their centres."""
    points = torch.stack([features[labels == number] for number in range(3)])
    centres = points.mean(dim=1)
    basis = torch.linalg.svd(centres - centres.mean(dim=0), full_matrices=False)[2][:2]
    return ((points - centres.mean(dim=0)) @ basis.T).numpy()


if __name__ == "__main__":
    mpl.rcParams["font.size"] = 9
    FOLDER.mkdir(exist_ok=True)
    for one in PICTURES:
        draw(one, FOLDER / f"{one.marker}.png")
