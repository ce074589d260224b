"""Puts the commands together, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import typer

from geomonitor.cli import terminal
from geomonitor.cli.compare import compare
from geomonitor.cli.forecast import forecast
from geomonitor.cli.markers import markers
from geomonitor.cli.rank import rank
from geomonitor.cli.replay import replay
from geomonitor.cli.report import report
from geomonitor.cli.scan import scan
from geomonitor.errors import GeomonitorError, GeomonitorWarning

COMMANDS = (markers, report, replay, compare, scan, rank, forecast)
"""Functions named like their commands; another command is another module and another entry here."""

WRONG_USAGE = 2
INTERNAL_ERROR = 70
"""``EX_SOFTWARE`` of sysexits.h: a fault of geomonitor, not of the input."""
INTERRUPTED = 130

# Typer keeps it in a package of its own in some versions and takes it from click in others.
_CLICK_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def application() -> typer.Typer:
    """All commands."""
    app = typer.Typer(
        help="Watch the geometry of a network's representation.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    for command in COMMANDS:
        app.command()(command)
    return app


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    Args:
        arguments: without the name of the program; by default those of the process.
    """
    arguments = repeated(list(sys.argv[1:] if arguments is None else arguments), "--against")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):  # what overflows is shown as inf or NaN
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", GeomonitorWarning)
            result = typer.main.get_command(application()).main(
                arguments, prog_name="geomonitor", standalone_mode=False
            )
    except (GeomonitorError, OSError, ImportError) as error:
        return _fail(str(error))
    except _CLICK_ERROR as error:
        return _fail(error.format_message() or "no command given; geomonitor --help lists them")
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except MemoryError:
        return _fail("there is not enough memory for these files")
    except Exception as error:  # noqa: BLE001 - a fault of geomonitor is one line, also
        return _fail(f"{_place(error)}: please report it, with the files that were read", INTERNAL_ERROR)
    if result == INTERRUPTED:  # some versions of typer turn the interrupt into this
        return _fail("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def repeated(arguments: list[str], option: str) -> list[str]:
    """Arguments in which an option stands before each of the values that follow it: a shell expands ``runs/*`` to many.

    >>> repeated(["compare", "new", "--against", "a", "b", "--page", "p"], "--against")
    ['compare', 'new', '--against', 'a', '--against', 'b', '--page', 'p']
    """
    found, inside = [], False
    for place, argument in enumerate(arguments):
        if inside and not argument.startswith("-") and arguments[place - 1] != option:
            found.append(option)
        inside = argument == option or (inside and not argument.startswith("-"))
        found.append(argument)
    return found


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    terminal.message("warning", message)


def _fail(text: str, code: int = WRONG_USAGE) -> int:
    terminal.message("internal error" if code == INTERNAL_ERROR else "error", text)
    return code


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} ({Path(last.filename).name}, line {last.lineno})"
