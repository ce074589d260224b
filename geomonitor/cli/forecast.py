"""``geomonitor forecast``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from geomonitor.cli.terminal import AsJson, output, output_json, table
from geomonitor.decide.forecast import LEVEL, Forecasts, forecast_runs
from geomonitor.errors import InputError
from geomonitor.history.runs import load_run


def forecast(
    runs: Annotated[list[Path], typer.Argument(help="directories of finished runs of one recipe and architecture")],
    *,
    truth: Annotated[str, typer.Option(help="marker that some of the runs have, such as transfer_accuracy")],
    layer: Annotated[str, typer.Option(help="layer of the markers")] = "penultimate",
    early: Annotated[
        float | None,
        typer.Option(help="forecast by the truth after this share of training, such as 0.25, not by the dimension"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="also draw runs, line and interval to this file (matplotlib)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Forecast transfer at the end of runs from others of the same recipe, and print how often that is right.

    Not within a run by its markers: there they do not show how much transfer changes. Not across architectures.
    """
    if early is not None and not 0 < early < 1:
        raise InputError(f"--early is a share of training between 0 and 1; got {early:g}")
    found = forecast_runs([load_run(path) for path in runs], truth, layer=layer, early=early)
    if as_json:
        each = zip(found.names, found.x, found.truth, found.intervals, strict=True)
        runs_found = [
            {"run": n, "predictor": x, "truth": value, "forecast": interval} for n, x, value, interval in each
        ]
        output_json({"predictor": found.predictor, "level": LEVEL, "runs": runs_found, "check": found.check})
    else:
        show(found, truth)
    if plot is not None:
        draw(found, truth, plot)
        if not as_json:
            output(plot)


def show(found: Forecasts, truth: str) -> None:
    """Print the runs, and how often such forecasts are right.

    Args:
        found: from :func:`geomonitor.decide.forecast.forecast_runs`.
        truth: name of the truth.
    """
    rows = [
        ([name, f"{x:.4g}", *(_known(value) if math.isfinite(value) else _forecast(interval))], None)
        for name, x, value, interval in zip(found.names, found.x, found.truth, found.intervals, strict=True)
    ]
    titles = {"run": "left", found.predictor: "right", truth: "right", f"{LEVEL:.0%} interval": "right", "": "left"}
    table(titles, rows)
    check = found.check
    output(
        f"Leaving one of {len(found.line.x)} runs with truth out: {check.covered:.0%} of {check.runs} lie in their "
        f"{LEVEL:.0%} interval; mean error {check.error:.3g}, and {check.error_of_mean:.3g} by the mean of the others."
    )
    if not check.error < check.error_of_mean:
        output("The line forecasts no better than the mean of the other runs: do not use it.")


def _known(value: float) -> tuple[str, ...]:
    return f"{value:.4g}", "", "measured"


def _forecast(interval: tuple[float, float, float]) -> tuple[str, ...]:
    if math.isnan(interval[0]):
        return "", "", "no forecast: not measured, or outside of the range of the known runs"
    return f"{interval[0]:.4g}", f"{interval[1]:.4g} to {interval[2]:.4g}", "forecast"


def draw(found: Forecasts, truth: str, path: Path) -> None:
    """Runs with truth, the line with its interval, and forecasts with theirs.

    Args:
        found: from :func:`geomonitor.decide.forecast.forecast_runs`.
        truth: name of the truth.
        path: of the picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('--plot needs matplotlib: pip install "geomonitor[plots]"') from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    low, high = float(found.line.x.min()), float(found.line.x.max())
    places = [low + (high - low) * n / 100 for n in range(101)]
    band = [found.line.forecast(place) for place in places]
    axis.fill_between(places, [b.low for b in band], [b.high for b in band], alpha=0.2, label=f"{LEVEL:.0%} interval")
    axis.plot(places, [b.value for b in band])
    axis.plot(found.x, found.truth, "o", label="measured")
    for x, interval in zip(found.x, found.intervals, strict=True):
        if math.isfinite(interval.value):
            widths = [[interval.value - interval.low], [interval.high - interval.value]]
            axis.errorbar([x], [interval.value], widths, fmt="s", color="#D55E00")
    axis.set(xlabel=found.predictor, ylabel=f"{truth} at the end")
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
