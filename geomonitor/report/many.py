"""Many runs side by side as one HTML file: the status of each, then their values. Needs the extra ``report``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from geomonitor.alarms.status_text import TITLES
from geomonitor.decide.many import Row, compare_many, regressions
from geomonitor.errors import InputError
from geomonitor.history.runs import Run
from geomonitor.report import findings
from geomonitor.report.template import checked_path, rendered, write_page


def write_runs(runs: Sequence[Run], path: str | os.PathLike[str]) -> Path:
    """Write the status of each run to a page, and their values side by side if one protocol measured them all.

    Args:
        runs: two or more.
        path: of the HTML file.

    Returns:
        The path.

    Raises:
        InputError: the path is a directory.
    """
    try:
        rows, why_none = compare_many(runs), ""
    except InputError as error:
        rows, why_none = [], f"{error}."
    return _write(rows, runs, path, 0, why_none)


def write_comparison(
    rows: Sequence[Row], runs: Sequence[Run], path: str | os.PathLike[str], *, healthy: int = 0
) -> Path:
    """Write the table of :func:`geomonitor.decide.many.compare_many`, its regressions and each status to a page.

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
    return _write(rows, runs, path, healthy, "")


def _write(rows: Sequence[Row], runs: Sequence[Run], path: str | os.PathLike[str], healthy: int, why_none: str) -> Path:
    path, names = checked_path(path, "runs.html"), findings.labels(runs)
    statuses = [(name, run.id, findings.status(run)) for name, run in zip(names, runs, strict=True)]
    urgency = list(TITLES)
    page = rendered(
        "many.html.j2",
        names=names,
        statuses=sorted(statuses, key=lambda row: urgency.index(row[2].state)),
        healthy=healthy,
        found=regressions(rows, runs),
        why_none=why_none,
        rows=[(row.layer, row.marker, *limits(row), cells(row)) for row in rows],
    )
    return write_page(path, page)


def limits(row: Row) -> tuple[str, str]:
    """Mean of the healthy runs and the limit, as text."""
    if row.band is None:
        return "", ""
    below = math.isfinite(row.band.low)
    return f"{row.band.mean:.4g}", f"{'min' if below else 'max'} {row.band.low if below else row.band.high:.4g}"


def cells(row: Row) -> list[tuple[str, bool]]:
    """The value of each run as text, and whether it left the band."""
    return [(_cell(value, error), bad) for (value, error), bad in zip(row.values, row.regressed, strict=True)]


def _cell(value: float, error: float) -> str:
    if math.isnan(value):
        return "undefined"
    return f"{value:.4g}" + (f" ± {error:.2g}" if math.isfinite(error) else "")
