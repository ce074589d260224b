"""The id of a run: a few letters and digits, the same in its side file, its checkpoints and its loggers."""

from __future__ import annotations

import re
import secrets
from typing import Any

_FORM = re.compile(r"\w[\w.-]{0,99}")


def new_run_id() -> str:
    """Eight random digits; the random streams of a training stay as they are.

    >>> is_run_id(new_run_id())
    True
    """
    return secrets.token_hex(4)


def is_run_id(value: Any) -> bool:
    """Whether a value may be an id: it becomes the name of a folder.

    >>> is_run_id("x7f3k2aa"), is_run_id("../up"), is_run_id(3)
    (True, False, False)
    """
    return isinstance(value, str) and _FORM.fullmatch(value) is not None
