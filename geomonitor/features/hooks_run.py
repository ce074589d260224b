"""Settings of the process without which hooks do not run, for as long as any thread needs them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


class _HooksRun:
    """Counts the blocks that need the settings: the first one sets them, and the last one puts back what was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._before = ExitStack()

    def enter(self) -> None:
        with self._lock:
            if not self._blocks:
                self._set()
            self._blocks += 1

    def leave(self) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                self._before.close()

    def _set(self) -> None:
        if "torch._dynamo" in sys.modules:  # never imported: nothing is compiled, and importing takes seconds
            self._before.enter_context(torch.compiler.set_stance("force_eager"))
        self._before.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)


_SHARED = _HooksRun()


@contextmanager
def hooks_run() -> Iterator[None]:
    """Run compiled modules uncompiled, and ``nn.TransformerEncoder`` without its fused path, inside the block.

    Both settings belong to the process: if blocks of several threads overlap, the last one to end puts them back.

    >>> before = torch.backends.mha.get_fastpath_enabled()
    >>> with hooks_run():
    ...     torch.backends.mha.get_fastpath_enabled()
    False
    >>> torch.backends.mha.get_fastpath_enabled() == before
    True
    """
    _SHARED.enter()
    try:
        yield
    finally:
        _SHARED.leave()
