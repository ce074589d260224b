"""Draws ``docs/architecture.png``: ``python docs/architecture_picture.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BOXES = (
    ("data set", "", "your data", 0, 1),
    ("probe/", "ProbeSet", "fixed, held-out points", 1, 1),
    ("features/", "(Q, N)", "through the model,\nwithout a trace", 2, 1),
    ("markers/  glue/", "dimension, nc1, ...", "pure functions", 3, 1),
    ("measure/", "values, errors", "one measurement", 4, 1),
    ("history/", "Record, History", "memory and CSV file", 4, 0),
    ("alarms/", "Verdict, Alarm", "the one judge", 3, 0),
    ("monitor.py", "GeometryMonitor", "START HERE", 2, 0),
    ("run.py", "MonitoredRun", "when, where, stop", 1, 0),
    ("integrations/", "GeometryCallback", "one per framework", 0, 0),
)
WIDTH, HEIGHT = 1.0, 0.62
STEP_X, STEP_Y = 1.32, 1.1
BLUE, INK, GREY = "#2f6fb3", "#1c1c1c", "#5c5c5c"


def main() -> None:
    """Draw the flow as two rows of boxes."""
    figure, axes = plt.subplots(figsize=(10.5, 3.4))
    for title, kind, words, column, row in BOXES:
        x, y = column * STEP_X, row * STEP_Y
        start = title == "monitor.py"
        axes.add_patch(
            plt.Rectangle((x, y), WIDTH, HEIGHT, facecolor="#eaf1fa" if start else "white", edgecolor=BLUE, lw=1.6)
        )
        axes.text(x + WIDTH / 2, y + 0.5, title, ha="center", va="center", weight="bold", size=10, color=INK)
        axes.text(x + WIDTH / 2, y + 0.34, kind, ha="center", va="center", size=8.5, color=BLUE)
        axes.text(x + WIDTH / 2, y + 0.14, words, ha="center", va="center", size=7.5, color=GREY)
    arrow = {"arrowstyle": "-|>", "color": GREY, "lw": 1.3}
    for column in range(4):
        left, right = column * STEP_X + WIDTH, (column + 1) * STEP_X
        axes.annotate("", (right, STEP_Y + HEIGHT / 2), (left, STEP_Y + HEIGHT / 2), arrowprops=arrow)
        axes.annotate("", (left, HEIGHT / 2), (right, HEIGHT / 2), arrowprops=arrow)
    axes.annotate("", (4 * STEP_X + WIDTH / 2, HEIGHT), (4 * STEP_X + WIDTH / 2, STEP_Y), arrowprops=arrow)
    axes.set_xlim(-0.05, 4 * STEP_X + WIDTH + 0.05)
    axes.set_ylim(-0.05, STEP_Y + HEIGHT + 0.05)
    axes.axis("off")
    figure.savefig(Path(__file__).with_name("architecture.png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
