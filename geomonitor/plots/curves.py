"""What curves over a history show: error bands, the decomposition of the capacity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor.errors import InputError
from geomonitor.history.history import History
from geomonitor.history.records import Series
from geomonitor.plots.drawing import BAND_SIGMAS


class Band(NamedTuple):
    """Limits of an error band, ``(n,)`` each; both are the value if it has no standard error."""

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


class Decomposition(NamedTuple):
    """``log capacity = log utility + log(1 + radius^-2) - log dimension``, each ``(n,)``, at the same steps.

    In the pairwise mode the measures are means over pairs of classes, and the parts do not sum to the whole exactly.
    """

    steps: NDArray[np.int64]
    epochs: NDArray[np.float64]
    """NaN if the epoch is not known"""
    log_capacity: NDArray[np.float64]
    log_utility: NDArray[np.float64]
    log_radius_factor: NDArray[np.float64]
    """``log(1 + radius^-2)``"""
    minus_log_dimension: NDArray[np.float64]

    def since(self, reference: int | None = None) -> Decomposition:
        """The change of each part since the measurement at step ``reference``, by default the first one.

        Raises:
            InputError: no measurement at that step.
        """
        known = np.isfinite(np.stack(self[2:])).all(axis=0)
        places = np.flatnonzero(known if reference is None else self.steps == reference)
        if not len(places):
            wanted = "a measurement without NaN" if reference is None else f"a measurement at step {reference}"
            raise InputError(f"the decomposition needs {wanted} as reference; there are steps {self.steps.tolist()}")
        return Decomposition(self.steps, self.epochs, *(part - part[places[0]] for part in self[2:]))


def band(series: Series) -> Band:
    """The values plus and minus ``BAND_SIGMAS`` standard errors.

    >>> one = np.array([2.0])
    >>> band(Series("penultimate", "dimension", np.array([10]), np.array([0.0]), one, np.array([0.25])))
    Band(lower=array([1.5]), upper=array([2.5]))
    """
    half = BAND_SIGMAS * np.nan_to_num(series.standard_errors)
    return Band(series.values - half, series.values + half)


def decomposition(history: History, layer: str = "penultimate") -> Decomposition:
    """What the capacity of a layer is made of, over time.

    Args:
        history: with the markers capacity, dimension, radius and utility.
        layer: alias of the layer.

    Returns:
        one entry for each step at which all four were recorded; NaN if the logarithm of one is undefined.

    Raises:
        InputError: one of the four was not recorded for this layer.
    """
    names = ("capacity", "utility", "radius", "dimension")
    series = {name: history.series(layer, name) for name in names}
    missing = [name for name, one in series.items() if not len(one.steps)]
    if missing:
        raise InputError(f"the decomposition of layer {layer!r} needs {', '.join(names)}; the history lacks {missing}")
    shared = sorted(set.intersection(*(set(one.steps.tolist()) for one in series.values())))
    of = {name: one.values[np.isin(one.steps, shared)] for name, one in series.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = decomposed(of["capacity"], of["utility"], of["radius"], of["dimension"])
    capacity = series["capacity"]
    return Decomposition(np.array(shared), capacity.epochs[np.isin(capacity.steps, shared)], *parts)


def decomposed(
    capacity: NDArray[np.float64],
    utility: NDArray[np.float64],
    radius: NDArray[np.float64],
    dimension: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the capacity and of its three factors, in the order of :class:`Decomposition`.

    >>> [round(float(part), 3) for part in decomposed(*np.array([1.0, 0.5, 1.0, 1.0]))]
    [0.0, -0.693, 0.693, -0.0]
    """
    return np.log(capacity), np.log(utility), np.log1p(np.square(1 / radius)), -np.log(dimension)
