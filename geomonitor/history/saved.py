"""A checkpoint that a run has kept: which file, and of which step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class SavedCheckpoint(NamedTuple):
    """A file or folder with the weights of a run at one step."""

    path: str
    step: int
    """optimiser steps done"""
    epoch: int | None = None
    """from 0; None if epochs are not known"""

    def __str__(self) -> str:
        epoch = "" if self.epoch is None else f"epoch {self.epoch}, "
        return f"{self.path} ({epoch}step {self.step})"

    @classmethod
    def of(cls, entry: Mapping[str, Any] | None) -> SavedCheckpoint | None:
        """From the entry of a side file or of a state; None for what is no such entry.

        >>> SavedCheckpoint.of({"path": "a.ckpt", "step": 96, "epoch": None})
        SavedCheckpoint(path='a.ckpt', step=96, epoch=None)
        >>> SavedCheckpoint.of({"path": 3})
        """
        entry = entry if isinstance(entry, Mapping) else {}
        path, step, epoch = (entry.get(name) for name in cls._fields)
        if not isinstance(path, str) or not isinstance(step, int) or not isinstance(epoch, int | None):
            return None
        return cls(path, step, epoch)
