"""Make the pictures of docs/gallery.md by the lines that the page shows, after those of the tutorial.

    python docs/gallery_pictures.py [RUNS]

With the folder in which the examples left their runs also those of ``finetune_text`` and ``language_model``.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

import geomonitor as gm

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n!\[[^]]*\]\((gallery/[\w.]+)\))?", re.DOTALL | re.MULTILINE)
COLORS = 64
"""Of a picture: a quarter of the bytes."""


def run_tutorial() -> dict[str, Any]:
    """The names that the tutorial leaves, trained in a folder that is removed."""
    names: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        os.chdir(folder)
        warnings.simplefilter("ignore", gm.GeometryDeclineWarning)
        for text, _ in BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8")):
            exec(compile(text, "tutorial.md", "exec"), names)
    return names


def save(figure: Figure, path: Path) -> None:
    """A small PNG."""
    content = io.BytesIO()
    figure.savefig(content, dpi=90)
    shrink(Image.open(content), path)


def shrink(image: Image.Image, path: Path) -> None:
    """Write with few colours."""
    path.parent.mkdir(exist_ok=True)
    image.convert("RGB").quantize(COLORS).save(path, optimize=True)
    print(path, path.stat().st_size)


def main() -> None:
    """All pictures."""
    mpl.use("Agg")
    runs = [Path(folder).resolve() for folder in sys.argv[1:]]
    names = run_tutorial()
    for text, picture in BLOCK.findall((DOCS / "gallery.md").read_text(encoding="utf-8")):
        exec(compile(text, "gallery.md", "exec"), names)
        if picture:
            save(names["figure"], DOCS / picture)
    for folder in runs:
        history = gm.History.load(folder / "finetune_text/fault/geometry.csv")
        save(history.plot(["dimension", "utility", "transfer_accuracy"])[0], DOCS / "gallery/finetune_text.png")
        shrink(Image.open(folder / "language_model/language_model.png"), DOCS / "gallery/language_model.png")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
