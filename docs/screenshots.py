"""Make the pictures of docs/demo.md again, from the runs that ``make demo`` left.

    pip install selenium; python docs/screenshots.py [FOLDER]

Looks at a real TensorBoard page in headless Chromium; needs chromium and chromedriver on the PATH.
"""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from selenium import webdriver

RUNS = Path("runs/mnist_collapse")
DOCS = Path(__file__).parent
SETTLED_SECONDS = 30
COLORS = 128
"""of a picture in the repository: enough for text and curves, and a third of the bytes"""
PINNED = (
    '?pinnedCards=[{"plugin":"scalars","tag":"geometry/penultimate/dimension"},'
    '{"plugin":"scalars","tag":"geometry/penultimate/alarm"}]#timeseries'
)
"""The address of docs/howto/lightning.md, at which curves of the geometry come first."""


def main() -> None:
    """Copy the plot of the demo and photograph its TensorBoard page."""
    if not (RUNS / "faulty").is_dir():
        sys.exit(f"{RUNS} holds no runs: make demo first")
    (DOCS / "mnist_collapse.png").write_bytes(with_few_colors((RUNS / "mnist_collapse.png").read_bytes()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    board = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", RUNS, "--port", str(port), "--host", "127.0.0.1"],
        stderr=subprocess.DEVNULL,
    )
    try:
        page = f"http://127.0.0.1:{port}"
        wait_for(f"{page}/data/runs")
        if sys.argv[1:]:  # a folder for pictures that are not in the documentation: what a user sees first
            folder = Path(sys.argv[1])
            photograph(f"{page}/", folder / "tensorboard_first.png", (1500, 1120))
            photograph(f"{page}/?darkMode=true", folder / "tensorboard_first_dark.png", (1500, 1120))
            photograph(f"{page}/{quote(PINNED, safe='?=&#')}", folder / "tensorboard_pinned.png", (1500, 1120))
        photograph(f"{page}/#custom_scalars&_smoothingWeight=0", DOCS / "tensorboard_layout.png", (1500, 1120))
        photograph(f"{page}/#images&regexInput=faulty", DOCS / "tensorboard_figures.png", (1500, 1200))
        photograph(f"{page}/#text", DOCS / "tensorboard_alarm.png", (1500, 760))
    finally:
        board.terminate()


def wait_for(address: str, seconds: float = 60) -> None:
    """Until the page answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address)
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def photograph(address: str, picture: Path, size: tuple[int, int]) -> None:
    """One screenshot, once the page has drawn its curves (which it does outside the page's own thread)."""
    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--window-size={size[0]},{size[1]}")
    options.binary_location = shutil.which("chromium") or ""
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        browser.get(address)
        time.sleep(SETTLED_SECONDS)
        picture.write_bytes(with_few_colors(browser.get_screenshot_as_png()))
    print(picture)


def with_few_colors(png: bytes) -> bytes:
    """A smaller picture of the same look."""
    smaller = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(
        smaller, "PNG", optimize=True
    )
    return smaller.getvalue()


if __name__ == "__main__":
    main()
