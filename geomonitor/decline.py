"""Pure detectors: a series of measurements in, a :class:`Verdict` out. They hold no state: the history is the state.

Markers fall early in every healthy run, while the classes form. Only a decline after that, beyond the noise, is news.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor.errors import InputError
from geomonitor.records import History, Series

GAUSSIAN_MAD = 1.4826
"""A median absolute deviation times this estimates the standard deviation of a Gaussian."""


SCATTER_CHECKS = 9
"""Measurements that the scatter is taken from at least, where there are as many: of fewer it is mostly chance."""


class Verdict(NamedTuple):
    """Whether a marker has declined, and the evidence."""

    declined: bool
    layer: str
    marker: str
    value: float = math.nan
    """latest finite value; NaN where there is none"""
    reference: float = math.nan
    """what it is judged against; NaN during warm-up"""
    standard_error: float = math.nan
    """noise of ``value - reference``: the larger of sampling error and scatter of the series; NaN during warm-up"""
    since_step: int | None = None
    """first measurement of the decline, in optimiser steps; None while nothing declines"""
    since_epoch: int | None = None
    """the same in epochs; None also where epochs are not known"""
    checks: int = 0
    """measurements in decline, in a row"""

    @property
    def change(self) -> float:
        """Relative change against the reference, for instance ``-0.25``."""
        return self.value / self.reference - 1

    @property
    def sigmas(self) -> float:
        """Size of the change in units of its standard error; infinite where the series has no noise."""
        return abs(self.value - self.reference) / self.standard_error if self.standard_error else math.inf


Detector = Callable[[Series], Verdict]
"""Anything that judges a series by its numbers alone."""


@dataclass(frozen=True)
class DropFromReference:
    """Decline: a drop from the recent level that is large, beyond the noise, and stays.

    *Reference*: the median over the later half of the run so far, so that one outlier does not move it and a slow drift
    is followed; it stands still while a decline lasts. *Warm-up* lasts until, within that half, the median of the
    second part no longer lies below that of the first by half of ``drop``, and for ``warmup_checks`` measurements at
    least. A measurement is low when it lies both ``drop`` (relative) and ``sigmas`` standard errors below the
    reference; the verdict is "declined" from the ``patience_checks``-th low one in a row until one is not low.

    Where you measure many times while the classes still form, raise ``warmup_checks`` to cover that time: a series
    alone cannot tell a first plateau that ends in class formation from a healthy run that ends in a fault.

    A failed measurement (NaN) is passed over: it neither raises nor clears an alarm. A marker whose reference is not
    positive is never in decline.

    Args:
        drop: smallest relative drop that matters, in ``(0, 1)``.
        sigmas: smallest drop in standard errors of the difference.
        warmup_checks: measurements before anything is judged.
        patience_checks: low measurements in a row that make a decline.

    >>> epochs, errors = np.arange(8), np.full(8, 0.05)
    >>> values = np.array([1.9, 2.0, 2.1, 2.0, 2.1, 2.0, 1.4, 1.3])
    >>> verdict = DropFromReference()(Series("fc", "dimension", 24 * epochs, epochs, values, errors))
    >>> verdict.declined, verdict.since_epoch, round(verdict.change, 2)
    (True, 6, -0.35)
    """

    drop: float = 0.15
    sigmas: float = 3.0
    warmup_checks: int = 4
    patience_checks: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.drop < 1 or self.sigmas < 0:
            raise InputError(f"drop must lie in (0, 1) and sigmas must not be negative; got {self}")
        if self.warmup_checks < 1 or self.patience_checks < 1:
            raise InputError(f"warmup_checks and patience_checks count measurements, from 1; got {self}")

    def __call__(self, series: Series) -> Verdict:
        """Judge a series by replaying it."""
        finite = np.isfinite(series.values)
        steps, epochs, values = series.steps[finite], series.epochs[finite], series.values[finite]
        errors = np.nan_to_num(series.standard_errors[finite])
        warm = False
        low = since = 0
        reference = reference_error = scatter = noise = math.nan
        for now in range(len(values)):
            recent = slice(now // 2, now)
            warm = warm or (now >= self.warmup_checks and _fall_within(values[now // 2 : now + 1]) < self.drop / 2)
            if not warm:
                continue
            if not low:
                since = now
                reference, reference_error = float(np.median(values[recent])), float(np.median(errors[recent]))
                scatter = _scatter(values[max(0, min(now // 2, now - SCATTER_CHECKS)) : now])
            noise = max(math.hypot(errors[now], reference_error), scatter)
            gap = reference - values[now]
            low = low + 1 if reference > 0 and gap > self.drop * reference and gap > self.sigmas * noise else 0
        return Verdict(
            declined=low >= self.patience_checks,
            layer=series.layer,
            marker=series.marker,
            value=float(values[-1]) if len(values) else math.nan,
            reference=reference,
            standard_error=noise,
            since_step=int(steps[since]) if low else None,
            since_epoch=int(epochs[since]) if low and np.isfinite(epochs[since]) else None,
            checks=low,
        )


DETECTORS: Mapping[str, Callable[..., Detector]] = MappingProxyType({"drop_from_reference": DropFromReference})
"""Detectors by name, for configuration files."""


def judge(history: History, layer: str, markers: Iterable[str], detector: Detector) -> Verdict:
    """The verdict on a layer: that of the marker which speaks loudest.

    Args:
        history: all measurements so far.
        layer: alias of the layer.
        markers: names of the markers to judge, at least one.
        detector: judges each of them.

    Returns:
        A declined verdict if there is one; among several, the one of the most standard errors.
    """
    verdicts = [detector(history.series(layer, marker)) for marker in markers]
    return max(verdicts, key=lambda v: (v.declined, v.sigmas if v.declined else 0.0))


def _fall_within(values: NDArray[np.float64]) -> float:
    """Relative fall from the first part of a stretch to the second; infinite where the first is not positive."""
    middle = len(values) // 2
    first, second = np.median(values[:middle]), np.median(values[middle:])
    return float(1 - second / first) if first > 0 else math.inf


def _scatter(values: NDArray[np.float64]) -> float:
    """Standard deviation of a value around its level, from successive differences; 0 where there are too few."""
    differences = np.abs(np.diff(values))
    return GAUSSIAN_MAD * float(np.median(differences)) / math.sqrt(2) if len(differences) > 1 else 0.0
