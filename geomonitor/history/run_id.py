"""The id of a run: a few letters and digits, the same in its side file, its checkpoints and its loggers."""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geomonitor._warnings import WarnOnce

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


def id_in(side: Path) -> str:
    """The id in a side file; "" if there is none, as in those of older versions."""
    try:
        found = json.loads(side.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    run_id = found.get("run_id") if isinstance(found, dict) else None
    return str(run_id) if is_run_id(run_id) else ""


def name_in_wandb(name: str, whereabouts: Mapping[str, str], warn: WarnOnce) -> None:
    """Write :meth:`History.whereabouts` into the configuration of the W&B run that is open, unless it is in there.

    Args:
        name: of the callback, "" for the only one; the key is ``geometry_run`` or ``geometry_<name>_run``, as with the
            loggers of Lightning.
        whereabouts: id and path.
        warn: warns of a failure.
    """
    key = "_".join(part for part in ("geometry", name, "run") if part)
    experiment = getattr(sys.modules.get("wandb"), "run", None)
    try:
        if experiment is not None and experiment.config.get(key) != whereabouts:
            experiment.config.update({key: dict(whereabouts)}, allow_val_change=True)
    except Exception as error:  # noqa: BLE001 - a logger must not end a run through us
        warn(f"W&B did not take the id of the run. {type(error).__name__}: {error}", "wandb")
