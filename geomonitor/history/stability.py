r"""How far a series falls and rises within a few measurements: the stability gap of continual learning.

A network that begins a new task loses some of an old one at once and gains it back later; measured at the ends of the
tasks alone, the loss is not seen. All numbers depend on how often is measured: compare runs of one cadence.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.history.records import Series

NOISE_DRAWS = 400
"""Series of pure noise whose mean forgetting is the null; its own standard error is below 2 %."""
_MOST_NOISE = 4_000_000
"""Numbers drawn for the null at most: of a longer series fewer draws are made, and each varies less."""


class StabilityMetrics(NamedTuple):
    """Forgetting and plasticity of the tasks so far; NaN where not defined."""

    windowed_forgetting: float
    """largest fall within a window of measurements, at least 0; mean over tasks"""
    windowed_plasticity: float
    """largest rise within a window of measurements, at least 0; mean over tasks"""
    noise: float
    """what both would be of pure noise of the scatter that the series have; mean over tasks"""
    min_accuracy: float
    """lowest value since the end of a task; mean over the tasks before the current one"""
    min_accuracy_noise: float
    """how far pure noise of that scatter would bring these minima below the mean"""
    worst_case_accuracy: float
    """mean of the latest value of the current task and of the minima of those before it"""


class Stability:
    """Follows one marker of each task, measurement by measurement.

    Tasks are numbered in the order of training; the series of a task is its marker on a probe set of its own, measured
    also while others are trained. A value that is NaN takes its place in the window, and counts for nothing else.

    Args:
        window: measurements in which a fall or a rise counts.
        tasks: steps after which the next task is trained; :meth:`next_task` adds one.

    Raises:
        InputError: a window below two, steps that do not rise.

    >>> stability = Stability(window=3)
    >>> for step, value in enumerate([0.9, 0.5, 0.8, 0.85, 0.9]):
    ...     stability.update(step, value)
    >>> found = stability.compute()
    >>> round(found.windowed_forgetting, 6), round(found.windowed_plasticity, 6)
    (0.4, 0.35)
    """

    def __init__(self, window: int = 10, tasks: Sequence[int] = ()) -> None:
        self.window = _options.whole("window", window, least=2)
        self.ends: list[int] = []
        """steps at which the tasks ended"""
        self._tasks: dict[int, _Task] = {}
        for step in _options.instance("tasks", tasks, (Sequence, np.ndarray), "steps, such as [1000, 2000]"):
            self.next_task(step)

    def next_task(self, step: int) -> None:
        """After this step another task is trained.

        Raises:
            InputError: a step that is not above the last one.
        """
        step = _options.whole("step", step, least=0)
        if self.ends and step <= self.ends[-1]:
            raise InputError(f"the steps at which tasks end must rise; got {step} after {self.ends[-1]}")
        self.ends.append(step)

    def update(self, step: int, value: float, task: int = 0) -> None:
        """Add a measurement.

        Args:
            step: optimiser steps done.
            value: of the marker on the probe set of this task.
            task: number of the task that the value belongs to, from 0.

        Raises:
            InputError: a step that is not above the last one of this task, a negative task.
        """
        task = _options.whole("task", task, least=0)
        step, value = _options.whole("step", step, least=0), _number(value)
        own = self._tasks.setdefault(task, _Task(self.window))
        if own.steps and step <= own.steps[-1]:
            raise InputError(f"the steps of a task must rise; got {step} after {own.steps[-1]}")
        own.add(step, value)

    def compute(self) -> StabilityMetrics:
        """The numbers so far."""
        measured = [own for own in self._tasks.values() if own.finite]
        scatters = [own.scatter for own in measured]
        nulls = [s * fall_of_noise(len(own.steps), self.window) for s, own in zip(scatters, measured, strict=True)]
        step = max((own.steps[-1] for own in self._tasks.values()), default=-1)
        current = sum(end < step for end in self.ends)
        earlier = [(self._tasks[task], self.ends[task]) for task in sorted(self._tasks) if task < current]
        after = [(own.scatter, values) for own, end in earlier if (values := own.since(end))]
        lows = [min(values) for _, values in after]
        latest = self._tasks[current].finite[-1:] if current in self._tasks else []
        return StabilityMetrics(
            _mean([own.fall for own in measured]),
            _mean([own.rise for own in measured]),
            _mean(nulls),
            _mean(lows),
            _mean([scatter * _largest_of_noise(len(values)) for scatter, values in after]),
            _mean([*latest, *lows]) if latest else math.nan,
        )


def stability_of(series: Series | Sequence[Series], *, window: int = 10, tasks: Sequence[int] = ()) -> StabilityMetrics:
    r"""Windowed forgetting and plasticity of finished series, lowest values, and worst-case accuracy.

    With :math:`a_1, \dots, a_T` the values of a task, the windowed forgetting is :math:`\max_{i < j \le i + w - 1}
    (a_i - a_j)`, the plasticity :math:`\max (a_j - a_i)`, both at least 0 and averaged over tasks. Noise alone makes
    them large: of ``T`` = 40 values of standard deviation 1 and ``w`` = 10 they are 3.8. ``noise`` is that number for
    the length and the scatter of the series; the scatter is the median of its second differences, so that a fall or a
    rise of some length is none. What oscillates from one measurement to the next counts as noise.

    Args:
        series: of each task in the order of training; one: of the task that is trained first.
        window: measurements in which a fall or a rise counts, ``w``.
        tasks: steps after which the next task is trained.

    Returns:
        ``StabilityMetrics``, in units of the series.

    Raises:
        InputError: a window below two, steps that do not rise.

    Source: De Lange, van de Ven, Tuytelaars 2023, arXiv:2205.13452; a window holds ``w`` values as in its code.

    >>> import numpy as np
    >>> steps = np.arange(5)
    >>> old = Series("penultimate", "accuracy", steps, steps * np.nan, np.array([0.9, 0.4, 0.6, 0.8, 0.8]), steps)
    >>> found = stability_of(old, tasks=[0])
    >>> round(found.windowed_forgetting, 6), found.min_accuracy
    (0.5, 0.4)
    """
    stability = Stability(window, tasks)
    every = (
        [series]
        if isinstance(series, Series)
        else _options.instance("series", series, Sequence, "a Series, or several")
    )
    for task, own in enumerate(every):
        _options.instance("each of series", own, Series, "a geomonitor.Series")
        for step, value in zip(own.steps.tolist(), own.values.tolist(), strict=True):
            stability.update(step, value, task)
    return stability.compute()


class _Task:
    """The values of one task, and the largest fall and rise so far."""

    def __init__(self, window: int) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self.fall = self.rise = 0.0
        self._falls, self._rises = _Falls(window), _Falls(window)

    def add(self, step: int, value: float) -> None:
        place = len(self.steps)
        self.steps.append(step)
        self.values.append(value)
        if math.isfinite(value):
            self.fall = max(self.fall, self._falls.add(place, value))
            self.rise = max(self.rise, self._rises.add(place, -value))

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]

    @property
    def scatter(self) -> float:
        """Standard deviation from second differences, which a straight line does not have."""
        bends = np.abs(np.diff(self.finite, 2))
        return float(1.4826 * np.median(bends) / math.sqrt(6)) if len(bends) > 2 else math.nan

    def since(self, step: int) -> list[float]:
        """The finite values after a step."""
        pairs = zip(self.steps, self.values, strict=True)
        return [value for at, value in pairs if at > step and math.isfinite(value)]


class _Falls:
    """How far each value lies below the largest one of the window before it, by a queue of falling values."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._queue: deque[tuple[int, float]] = deque()

    def add(self, place: int, value: float) -> float:
        """Add a value at a place in the series; at most 0 if none before it in the window is larger."""
        while self._queue and self._queue[0][0] <= place - self._window:
            self._queue.popleft()
        fall = self._queue[0][1] - value if self._queue else 0.0
        while self._queue and self._queue[-1][1] <= value:
            self._queue.pop()
        self._queue.append((place, value))
        return fall


@functools.lru_cache(maxsize=256)
def fall_of_noise(length: int, window: int) -> float:
    """Mean windowed forgetting of independent Gaussian values of standard deviation 1, by simulation with one seed.

    Args:
        length: of the series.
        window: as in :func:`stability_of`.

    >>> round(fall_of_noise(40, 10), 1), round(fall_of_noise(400, 10), 1)
    (3.8, 5.0)
    """
    if length < 2:
        return 0.0
    from scipy.ndimage import maximum_filter1d  # type: ignore[import-untyped]

    draws = max(1, min(NOISE_DRAWS, _MOST_NOISE // length))
    noise: NDArray[np.float64] = np.random.default_rng(0).standard_normal((draws, length))
    size = min(window, length)
    # The largest of the window that ends at each place: the filter's window is moved back by half its size.
    highest = maximum_filter1d(noise, size, axis=1, origin=(size - 1) // 2, mode="constant", cval=-math.inf)
    return float((highest - noise).max(axis=1).mean())


def _largest_of_noise(count: int) -> float:
    """Mean of the largest of ``n`` Gaussian values, by the approximation of Blom 1958."""
    from scipy.special import ndtri  # type: ignore[import-untyped]

    return float(ndtri((count - 0.375) / (count + 0.25)))


def _number(value: object) -> float:
    number = float(_options.instance("value", value, (int, float, np.number), "a number"))
    return number if math.isfinite(number) else math.nan


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
