"""The command line, one module a command. Needs the extra ``cli`` (typer, rich, safetensors).

Exit codes: 0 done; 1 ``compare`` found a marker beyond a bound; 2 wrong usage or input, told in one line.
"""

from __future__ import annotations

from geomonitor.cli.page import markers_page

__all__ = ["main", "markers_page"]


def main() -> None:
    """Entry point of the command ``geomonitor``."""
    try:
        import rich
        import typer
    except ImportError as error:
        raise SystemExit(f'the command line needs typer and rich ({error}): pip install "geomonitor[cli]"') from error
    del rich, typer
    from geomonitor.cli.app import run

    raise SystemExit(run())
