"""One more measurement soon after one that may become an alarm: sooner certain, and one outlier is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from geomonitor.alarms.verdict import Verdict

LONGEST = 200
"""Most steps between a measurement and its follow-up."""


class FollowUp:
    """When to measure once more.

    Args:
        on: False: never.

    >>> later = FollowUp()
    >>> later.after(100, []), later.after(120, [Verdict(False, "fc", "dimension", pending=True)])
    (None, None)
    >>> later.due(125), later.due(130)
    (False, True)
    """

    def __init__(self, on: bool = True) -> None:
        self.now = False
        """the measurement that is made now is a follow-up"""
        self._on = on
        self._last: int | None = None
        self._at: int | None = None

    def state_dict(self) -> dict[str, int | None]:
        """What a resumed run goes on from."""
        return {"last": self._last, "at": self._at}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Continue from :meth:`state_dict`; from nothing, if an older version saved none."""
        self._last, self._at, self.now = state.get("last"), state.get("at"), False

    def due(self, step: int) -> bool:
        """Whether to measure after this step; True once."""
        self.now = self._at is not None and step >= self._at
        if self.now:
            self._at = None
        return self.now

    def after(self, step: int, verdicts: Iterable[Verdict]) -> None:
        """Note a measurement: what was pending is followed up half an interval later, but no follow-up is."""
        interval = 0 if self._last is None else step - self._last
        pending = self._on and not self.now and any(verdict.pending for verdict in verdicts)
        self._at = step + min(LONGEST, interval // 2) if pending and interval > 1 else None
        if not self.now:
            self._last = step
        self.now = False
