"""Puts the commands together, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from geomonitor.cli.compare import compare
from geomonitor.cli.markers import markers
from geomonitor.cli.replay import replay
from geomonitor.cli.report import report
from geomonitor.cli.scan import scan
from geomonitor.errors import GeomonitorError

COMMANDS = (markers, report, replay, compare, scan)
"""Functions named like their commands; another command is another module and another entry here."""

WRONG_USAGE = 2

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
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell_warning
            result = typer.main.get_command(application()).main(
                arguments, prog_name="geomonitor", standalone_mode=False
            )
    except (GeomonitorError, OSError, ImportError) as error:
        return _fail(str(error))
    except _CLICK_ERROR as error:
        return _fail(error.format_message() or "no command given; geomonitor --help lists them")
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    return result if isinstance(result, int) else 0


def _tell_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"warning: {_one_line(message)}\n")


def _fail(message: str, code: int = WRONG_USAGE) -> int:
    sys.stderr.write(f"error: {_one_line(message)}\n")
    return code


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
