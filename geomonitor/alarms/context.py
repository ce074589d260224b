"""What else happened in the training: optimiser settings, norm of the gradient, a resume. It explains an alarm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from geomonitor._warnings import WarnOnce, cause_of
from geomonitor.alarms.recipe import changes, recipe_of
from geomonitor.history.history import History

CONTEXT = ("learning_rate", "weight_decay", "gradient_norm", "resumed")
"""What a training loop can record beside the markers; in the history, with layer "", it helps to explain an alarm."""
EXPECTABLE = ("learning_rate", "weight_decay")
"""Settings of the optimiser whose changes may be planned."""
MOST_IN_A_ROW = 2
"""Measurements in a row at which one setting may change on purpose: a plan is an event, not a drift."""
GRADIENT_NORM_EVERY = 20
"""Optimiser steps between two looks at the norm of the gradient."""

_LEAST_CHANGE = MappingProxyType({"learning_rate": 1.25, "weight_decay": 1.25, "gradient_norm": 10.0})


class TrainingContext:
    """Collects what explains an alarm; whatever fails here is a warning, not an error.

    Args:
        warn: warns of each cause once.
        expect: settings of ``EXPECTABLE`` whose changes are planned, as by a schedule.
    """

    def __init__(self, warn: WarnOnce, expect: Sequence[str] = ()) -> None:
        self._warn = warn
        self._expect = tuple(expect)
        self.reset()

    def reset(self) -> None:
        """A new run begins: nothing is known of another one."""
        self.resumed = False
        """the run was resumed since the latest measurement"""
        self.recipe: dict[str, str] = {}
        """what was used at the latest measurement, see :func:`geomonitor.alarms.recipe.recipe_of`"""
        self._rates: dict[str, float] = {}
        self._in_a_row: dict[str, int] = {}  # measurements at which something has changed
        self._gradient_norm: Tensor | None = None

    def look_at_gradients(self, parameters: Iterable[Tensor], step: int) -> None:
        """Note the norm of the gradient at every ``GRADIENT_NORM_EVERY``-th step, before the optimiser uses it.

        Args:
            parameters: of the model. Sparse gradients and those spread over processes are passed over.
            step: optimiser steps done so far.
        """
        if step % GRADIENT_NORM_EVERY:
            return
        try:
            gradients = [p.grad for p in parameters if p.grad is not None]
            if all(type(grad) is Tensor and grad.layout is torch.strided for grad in gradients):
                self._gradient_norm = torch.nn.utils.get_total_norm(gradients)
        except Exception as error:  # noqa: BLE001 - a norm that only explains is not worth a run
            self._warn(f"the norm of the gradient is not known. {error!r}", cause_of(error))

    def planned_changes(
        self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], data: object, context: Mapping[str, float]
    ) -> list[str]:
        """What was changed on purpose since the latest measurement, in words.

        Args:
            model: the model.
            optimizers: of the run.
            data: the training dataset, if it is known.
            context: what :meth:`collect` has returned.
        """
        try:
            recipe = recipe_of(model, optimizers, data)
        except Exception as error:  # noqa: BLE001 - modules and datasets of users; a plan not seen is not worth a run
            self._warn(f"planned changes of the recipe are not seen. {error!r}", cause_of(error))
            return []
        found = changes(self.recipe, recipe)
        for name in self._expect:
            before, after = self._rates.get(name, math.nan), context.get(name, math.nan)
            if _ratio(before, after) >= _LEAST_CHANGE[name]:
                found[name] = f"{before:.3g} -> {after:.3g}"
        self.recipe, self._rates = recipe, dict(context)
        self._in_a_row = {name: self._in_a_row.get(name, 0) + 1 for name in found}
        for name in [name for name in found if self._in_a_row[name] > MOST_IN_A_ROW]:
            del found[name]
            self._warn(
                f"{name} changes at every measurement, so a change of it no longer starts the reference anew: nothing "
                "could be judged otherwise.",
                f"always changes: {name}",
            )
        return [f"{name}: {words}" for name, words in found.items()]

    def collect(self, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, float]:
        """By the names of :data:`CONTEXT`, what is a finite number: settings of the first optimiser, and the rest."""
        known: dict[str, Any] = {"gradient_norm": self._gradient_norm, "resumed": self.resumed}
        self.resumed = False
        try:
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            settings = groups[0] if groups else {}
            known |= {"learning_rate": settings.get("lr"), "weight_decay": settings.get("weight_decay")}
            return {name: number for name, value in known.items() if math.isfinite(number := _number(value))}
        except Exception as error:  # noqa: BLE001 - what only explains is not worth a run
            self._warn(f"the settings of the optimiser are not known. {error!r}", cause_of(error))
            return {}


def what_changed(history: History, since_step: int) -> list[str]:
    """What the training loop recorded that changed just before or at the beginning of a decline.

    Args:
        history: with records of :data:`CONTEXT`.
        since_step: first measurement of the decline, in optimiser steps.

    Returns:
        One phrase for each, most often none: a change of at least a quarter in learning rate or weight decay, tenfold
        in gradient norm (that of one batch, which varies by a factor of a few), or a resume, within the two
        measurements before ``since_step``.

    >>> from geomonitor import History, Record
    >>> context = [Record(s, None, "", "weight_decay", v) for s, v in ((10, 0.01), (20, 0.01), (30, 0.5), (40, 0.5))]
    >>> what_changed(History(context), since_step=40)
    ['weight_decay 0.01 -> 0.5 between steps 20 and 30']
    """
    found = []
    for name in CONTEXT:
        series = history.series("", name)
        first = max(0, int(series.steps.searchsorted(since_step)) - 2)
        last = int(series.steps.searchsorted(since_step, side="right"))
        for n in range(first, last):
            value, step = series.values[n], series.steps[n]
            if name == "resumed":
                found += [f"resumed before step {step}"] if value else []
            elif n and _ratio(series.values[n - 1], value) >= _LEAST_CHANGE[name]:
                before = f"{series.values[n - 1]:.3g} -> {value:.3g}"
                found.append(f"{name} {before} between steps {series.steps[n - 1]} and {step}")
    return found


def _number(value: Any) -> float:
    """A value as a number; NaN for what is none, such as the tuple that some optimisers keep as weight decay."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _ratio(before: float, after: float) -> float:
    """By what factor a value changed, up or down; infinite from or to 0, 1 where either is not known."""
    low, high = sorted((abs(before), abs(after)))
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        return 1.0
    return high / low if low else math.inf
