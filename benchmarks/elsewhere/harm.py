"""Harm, by the truth of a run at every measurement and never by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST, ERRORS, CHECKS = 0.03, 3.0, 2
"""Fall below the plateau in accuracy and in paired errors, and measurements in a row at which it is there."""


class Harm(NamedTuple):
    """A fall of accuracy on new classes."""

    first: int
    """measurement at which it is there"""
    half: int
    """measurement at which half of its depth is there"""
    depth: float


def harm_of(columns: Mapping[str, NDArray[np.float64]]) -> Harm | None:
    """The harm in a run, also a transient one; None if there is none.

    Args:
        columns: ``unseen_accuracy``, and ``plateau`` and ``fall_error`` if they were measured; else the plateau is the
            highest median of three measurements in a row so far, and the error that of the scatter of the series.
    """
    truth = columns["unseen_accuracy"]
    if "plateau" in columns:
        plateau, error = columns["plateau"], columns["fall_error"]
    else:
        medians = [np.median(truth[k : k + 3]) for k in range(len(truth) - 2)]
        plateau = np.array([np.nan] * 3 + [max(medians[: k - 2]) for k in range(3, len(truth))])
        bends = np.abs(np.diff(truth, n=2))
        error = np.full(len(truth), float(np.median(bends)) * 1.4826 / math.sqrt(6) * math.sqrt(4 / 3))
    fall = plateau - truth
    low = fall > np.maximum(LEAST, ERRORS * error)
    both = np.flatnonzero(low[:-1] & low[1:])
    if not len(both):
        return None
    stays = np.fmin(fall[:-1], fall[1:])
    depth = float(stays[both].max())
    return Harm(int(both[0]), int(np.flatnonzero(stays >= depth / 2)[0]), depth)
