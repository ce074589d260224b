"""Everything that the commands print goes through here, so that no name from a file reaches a terminal as it is."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import rich.box
import rich.console
import rich.progress
import rich.table
import typer
from rich.text import Text

from geomonitor.history.printable import printable

LONGEST_MESSAGE = 500
LONGEST_CELL = 60
_LONGEST_OUTPUT = 1_000_000


def output(text: object) -> None:
    """Print lines on standard output."""
    typer.echo(printable(text, lines=True, longest=_LONGEST_OUTPUT))


AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object, for a script")]


def output_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output; NaN and infinity, which JSON lacks, are null."""
    typer.echo(json.dumps(plain(values), indent=2))


def plain(value: Any) -> Any:
    """Values that JSON has: named tuples become objects, other sequences arrays.

    >>> plain({"a": (1.0, float("nan")), "b": Path("runs")})
    {'a': [1.0, None], 'b': 'runs'}
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def message(kind: str, text: object) -> None:
    """Print one line on standard error: ``error: ...``, ``warning: ...``."""
    sys.stderr.write(f"{kind}: {printable(' '.join(str(text).split()), longest=LONGEST_MESSAGE)}\n")


def table(titles: dict[str, Any], rows: Sequence[tuple[Sequence[str], str | None]]) -> None:
    """Print a table on standard output.

    Args:
        titles: of the columns, with their alignment.
        rows: cells and style.
    """
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for title, justify in titles.items():
        drawn.add_column(title, justify=justify, overflow="fold")  # a narrow terminal folds numbers, it cuts none
    for cells, style in rows:
        drawn.add_row(*(Text(printable(cell, longest=LONGEST_CELL)) for cell in cells), style=style)
    rich.console.Console(highlight=False).print(drawn)


class Progress:
    """A bar on standard error, and lines above it.

    Args:
        what: is done.
        total: how many there are.
        quiet: show nothing.
    """

    def __init__(self, what: str, total: int, *, quiet: bool) -> None:
        self._console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """One more is done, or ``count`` more."""
        self._bar.advance(self._task, count)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(printable(text), markup=False)
