"""Many runs side by side as one HTML file. Needs the extra ``report`` (jinja2)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from geomonitor.decide.many import Row, regressions
from geomonitor.errors import InputError
from geomonitor.history.printable import printable
from geomonitor.history.runs import Run

PAGE = Path(__file__).parent


def write_comparison(
    rows: Sequence[Row], runs: Sequence[Run], path: str | os.PathLike[str], *, healthy: int = 0
) -> Path:
    """Write the table of :func:`geomonitor.decide.many.compare_many` and its regressions to a page.

    Args:
        rows: the table.
        runs: whose values it holds.
        path: of the HTML file.
        healthy: runs that make the limits.

    Returns:
        The path.

    Raises:
        InputError: the path is a directory.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError(f'pages need jinja2 ({error}): pip install "geomonitor[report]"') from error
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory: name a file, such as {path / 'runs.html'}")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    page = environment.get_template("many.html.j2").render(
        names=[run.name for run in runs],
        healthy=healthy,
        found=regressions(rows, runs),
        rows=[(row.layer, row.marker, *limits(row), cells(row)) for row in rows],
        style=Markup((PAGE / "page.css").read_text(encoding="utf-8")),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def limits(row: Row) -> tuple[str, str]:
    """Mean of the healthy runs and the limit, as text."""
    if row.band is None:
        return "", ""
    below = math.isfinite(row.band.low)
    return f"{row.band.mean:.4g}", f"{'min' if below else 'max'} {row.band.low if below else row.band.high:.4g}"


def cells(row: Row) -> list[tuple[str, bool]]:
    """The value of each run as text, and whether it left the band."""
    return [
        (f"{value:.4g}" + (f" ± {error:.2g}" if math.isfinite(error) else ""), bad)
        for (value, error), bad in zip(row.values, row.regressed, strict=True)
    ]
