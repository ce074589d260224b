"""Pictures of a run and of a measurement, one function each, with matplotlib (``pip install "geomonitor[plots]"``).

Each function draws on the axes that it is given, or on new ones that ``pyplot`` shows, and returns figure and axes.
"""

from geomonitor.plots.history import plot_decomposition, plot_history
from geomonitor.plots.snapshot import (
    FIGURES,
    figure_of,
    plot_class_clouds,
    plot_class_dimensions,
    plot_class_matrix,
    plot_spectrum,
)

__all__ = [
    "FIGURES",
    "figure_of",
    "plot_class_clouds",
    "plot_class_dimensions",
    "plot_class_matrix",
    "plot_decomposition",
    "plot_history",
    "plot_spectrum",
]
