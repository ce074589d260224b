"""The command line, one module a command. Needs the extra ``cli`` (typer, rich, safetensors).

Exit codes: 0 done; 1 ``compare`` found a marker beyond a bound, ``replay`` an alarm; 2 wrong usage or input, in one
line; 70 a fault of geomonitor, also in one line; 130 interrupted.
"""

from __future__ import annotations

import io
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the command ``geomonitor``."""
    try:
        import rich
        import typer
    except ImportError as error:
        raise SystemExit(f'the command line needs typer and rich ({error}): pip install "geomonitor[cli]"') from error
    del rich, typer
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no "±" is no reason to fail
    from geomonitor.cli.app import run

    raise SystemExit(run())
