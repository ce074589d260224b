"""Make docs/fibers_known.png: fibers of two layers whose blindness is known, as in tests/explain/test_fibers.py.

PYTHONPATH=. python docs/fibers_known.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch

from geomonitor.explain import FlowPrior, sample_fibers
from geomonitor.explain.fiber_markers import pair_scale
from tests.explain.test_fibers import Images, blobs, position, shade

POINTS, SHOWN = (6, 12, 31), 5
LAYERS = {"total brightness: blind to place": shade, "place: blind to brightness": position}


def main() -> None:
    """The picture: an input in each row, then members of its fiber in either layer."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    images = blobs()
    prior, points = FlowPrior(Images(images), (1, 6, 6), predicts="x0"), images[list(POINTS)]
    drawn = {
        title: sample_fibers(
            layer, prior, points, per_input=SHOWN, strength=10, scale=pair_scale(layer(images))
        ).samples
        for title, layer in LAYERS.items()
    }
    figure, axes = plt.subplots(len(POINTS), 1 + 2 * SHOWN, figsize=(8, 2.4))
    for row in range(len(POINTS)):
        members = [member for samples in drawn.values() for member in samples[row]]
        for place, image in enumerate([points[row], *members]):
            axes[row, place].imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
            axes[row, place].set(xticks=[], yticks=[])
    axes[0, 0].set_title("input", fontsize=9)
    for number, title in enumerate(drawn):
        axes[0, 1 + number * SHOWN].set_title(title, fontsize=9, loc="left")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.88, bottom=0.02, wspace=0.08, hspace=0.08)
    figure.savefig(Path(__file__).with_name("fibers_known.png"), dpi=100)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
