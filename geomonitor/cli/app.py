"""Puts the commands together, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from geomonitor.cli import terminal
from geomonitor.errors import GeomonitorError, GeomonitorWarning

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "markers": "List every marker: what it is, what it costs, which direction is worse.",
        "status": "Is a run healthy, and what to do if it is not; exit code 1 in an alarm.",
        "report": "Write a report of a run: one HTML file that needs no network.",
        "replay": "Judge a saved run again; exit code 1 if there is an alarm.",
        "stability": "How far a marker falls and rises within a few measurements; continual learning.",
        "compare": "Compare runs at their ends; exit code 1 if a marker breaks a bound.",
        "scan": "Measure saved checkpoints, as if a monitor had watched the training.",
        "rank": "Order finished models by how well they should transfer to new classes.",
        "fibers": "Draw inputs that a layer maps to equal features, before and after a change.",
        "forecast": "Forecast transfer at the end of runs from others of the same recipe.",
    }
)
"""Modules and functions named like their commands, and what they do. Only the one that is called is
imported: torch alone takes a second."""

WRONG_USAGE = 2
INTERNAL_ERROR = 70
"""``EX_SOFTWARE`` of sysexits.h: a fault of geomonitor, not of the input."""
INTERRUPTED = 130

# Typer keeps it in a package of its own in some versions and takes it from click in others.
_CLICK_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def application(called: str = "") -> typer.Typer:
    """All commands; of those that are not called, the names and first lines alone.

    Args:
        called: the command that is called; "" for none.
    """
    app = typer.Typer(
        help="Watch the geometry of a network's representation.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name, summary in COMMANDS.items():
        if name == called:
            app.command(name)(getattr(importlib.import_module(f"geomonitor.cli.{name}"), name))
        else:
            app.command(name, help=summary)(_not_called)
    return app


def _not_called() -> None:
    """Stands for a command in the list of commands."""


def _show_version(requested: bool) -> None:
    if requested:
        terminal.output(f"geomonitor {importlib.import_module('geomonitor').__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    Args:
        arguments: without the name of the program; by default those of the process.
    """
    arguments = repeated(list(sys.argv[1:] if arguments is None else arguments), "--against")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", GeomonitorWarning)
            called = next((argument for argument in arguments if not argument.startswith("-")), "")
            command = typer.main.get_command(application(called))
            result = _quietly(called, lambda: command.main(arguments, prog_name="geomonitor", standalone_mode=False))
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


def _quietly(called: str, function: Callable[[], Any]) -> Any:
    """Call it; what overflows in a command is shown as inf or NaN."""
    if called not in COMMANDS:  # the list of commands needs no numpy
        return function()
    import numpy as np

    with np.errstate(all="ignore"):
        return function()


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
