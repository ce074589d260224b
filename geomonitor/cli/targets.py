"""What a user names on the command line as ``package.module:name``."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from geomonitor.errors import GeomonitorError, InputError

T = TypeVar("T")


def target(name: str, option: str) -> Any:
    """Import what a name stands for; the working directory is also searched.

    Args:
        name: ``package.module:name``, where ``name`` may have dots.
        option: of the command line, for the error.

    Raises:
        InputError: not of this form, or nothing there.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise InputError(f"{option} must be package.module:name, such as train:model; got {name!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    found: Any = own_code(f"importing {module_name}", importlib.import_module, module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise InputError(f"{option} {name!r}: {module_name} has no {path!r}")
        found = getattr(found, part)
    return found


def own_code(what: str, function: Callable[..., T], *args: Any) -> T:
    """Call a user's code; an error in it is printed in one line, with its place.

    Raises:
        InputError: the user's code failed.
    """
    try:
        return function(*args)
    except GeomonitorError:
        raise
    except Exception as error:
        places = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        last = places[-1]
        place = f" ({Path(last.filename).name}, line {last.lineno})" if last.filename != __file__ else ""
        raise InputError(f"{what} failed with {type(error).__name__}: {error}{place}") from error
