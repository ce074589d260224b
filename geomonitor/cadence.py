"""When to measure: every n epochs, steps or validations, within the budget, and once more if that may matter.

:class:`geomonitor.MonitoredRun` is a cadence that measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from geomonitor import _options
from geomonitor.alarms.follow_up import FollowUp


class Cadence:
    """Whether to measure now, asked after each epoch, batch or validation; what was measured is noted.

    Args:
        every_n_epochs: epochs between two measurements, from the first epoch on.
        every_n_steps: optimiser steps between two measurements, instead of epochs.
        confirm: measure once more, half an interval later, if that may make an alarm.
        within_budget: whether the budget allows the next measurement; to ask is to count.

    Raises:
        InputError: an option of the wrong type or range.

    >>> cadence = Cadence(2, None, confirm=True, within_budget=lambda: True)
    >>> [cadence.due_after_epoch(epoch) for epoch in range(4)]
    [True, False, True, False]
    """

    def __init__(
        self, every_n_epochs: int, every_n_steps: int | None, *, confirm: bool, within_budget: Callable[[], bool]
    ) -> None:
        self.every_n_epochs = _options.whole("every_n_epochs", every_n_epochs)
        self.every_n_steps = _options.whole_or_none("every_n_steps", every_n_steps)
        self.follow_up = FollowUp(_options.flag("confirm", confirm))
        self._allowed = within_budget
        self._last_epoch: int | None = None
        self._last_step: int | None = None
        self._begin(0)

    def _begin(self, step: int) -> None:
        """A run begins or goes on at a step."""
        self._steps_seen, self._skipped = step, False  # skipped: the budget passed over the latest chance to measure
        self._asked: tuple[str, int] | None = None

    def _forget(self) -> None:
        """Nothing was measured yet."""
        self._last_epoch = self._last_step = None
        self.follow_up.load_state_dict({})

    def _measured(self, step: int, epoch: int | None) -> None:
        """Note that a measurement is made."""
        if not self.follow_up.now:  # which is no measurement of its epoch
            self._last_epoch = epoch
        self._last_step, self._skipped = step, False

    def _cadence_state(self) -> dict[str, Any]:
        return {
            **{"last_epoch": self._last_epoch, "last_step": self._last_step},
            "follow_up": self.follow_up.state_dict(),
        }

    def _load_cadence(self, state: Mapping[str, Any]) -> None:
        self._last_epoch, self._last_step = state.get("last_epoch"), state.get("last_step")
        self.follow_up.load_state_dict(state.get("follow_up", {}))

    def planned_measurements(self, epochs: int | None, steps: int | None) -> int | None:
        """Measurements of a run of ``epochs`` epochs and ``steps`` optimiser steps; None if these are not known."""
        if self.every_n_steps is not None:
            return None if steps is None else steps // self.every_n_steps
        return None if epochs is None else -(-epochs // self.every_n_epochs)

    def due_after_epoch(self, epoch: int, *, last: bool = False) -> bool:
        """Whether to measure at the end of an epoch; to be asked once or more often at the end of each.

        Args:
            epoch: from 0.
            last: it is the last one, which the budget does not pass over.
        """
        epoch = _options.whole("epoch", epoch, least=0)
        if self.every_n_steps is not None or self._last_epoch == epoch:
            return False
        due = epoch % self.every_n_epochs == 0
        return due and (self._within_budget("epoch", epoch) or last)

    def due_after_batch(self, step: int) -> bool:
        """Whether to measure after a batch: with ``every_n_steps``, or to follow up; to be asked after each.

        Args:
            step: optimiser steps done so far; a batch may be several steps, or none (gradient accumulation).
        """
        step = _options.whole("step", step, least=0)
        every, before, self._steps_seen = self.every_n_steps, self._steps_seen, step
        if self.follow_up.due(step):
            return True
        if every is None or step // every == before // every or step == self._last_step:
            return False
        return self._within_budget("step", step)

    def due_after_validation(self, step: int, epoch: int | None) -> bool:
        """Whether to measure after a validation, for a ``ValidationProbe``; to be asked before each validation.

        Args:
            step: optimiser steps done so far.
            epoch: from 0, if there are any.
        """
        step, epoch = _options.whole("step", step, least=0), _options.whole_or_none("epoch", epoch, least=0)
        if step == self._last_step:
            return False
        if self.every_n_steps is not None:
            due = self._last_step is None or step - self._last_step >= self.every_n_steps
        elif epoch is None or self._last_epoch is None or self.every_n_epochs == 1:
            due = True
        else:
            due = epoch - self._last_epoch >= self.every_n_epochs
        return due and self._within_budget("validation", step)

    @property
    def last_step(self) -> int | None:
        """Step of the latest measurement; None before the first."""
        return self._last_step

    @property
    def makes_up(self) -> bool:
        """Whether the budget passed over the latest chance to measure: at the end of a run it is made up for."""
        return self._skipped

    def _within_budget(self, kind: str, number: int) -> bool:
        """Ask the budget once for each chance to measure: to ask is to count."""
        if self._asked != (kind, number):
            self._asked, self._skipped = (kind, number), not self._allowed()
        return not self._skipped
