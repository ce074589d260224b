"""Many runs in one table, and against a band of healthy ones: how often it is wrong, what it names, what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from geomonitor import History, InputError, Record
from geomonitor.cli.app import run
from geomonitor.decide.many import band_of, compare_many, regressions
from geomonitor.history.runs import load_run

PROTOCOL = {"probe": "a"}


def write(folder: Path, values: dict[str, float], protocol: dict[str, str] = PROTOCOL) -> str:
    history = History()
    history.open(folder / "geometry.csv", dict(protocol))
    for step, factor in ((10, 3.0), (20, 1.0)):
        history.append([Record(step, step, "fc", name, factor * value, 0.01) for name, value in values.items()])
    return str(folder)


def healthy(folder: Path, runs: int = 5) -> list[str]:
    draw = np.random.default_rng(0)
    return [
        write(folder / f"healthy{n}", {"dimension": 2 + 0.05 * draw.normal(), "nc1": 0.3 + 0.01 * draw.normal(),
                                       "cdnv": 0.5 + 0.01 * draw.normal(), "seconds_like": draw.normal()})
        for n in range(runs)
    ]  # fmt: skip


@pytest.mark.parametrize(("worse", "n"), [("lower", 4), ("higher", 9)])
def test_the_limit_is_that_of_a_t_prediction(worse, n):
    values = np.random.default_rng(n).normal(size=n)
    band, width = (
        band_of(values, worse, 3),
        stats.t.ppf(1 - 0.05 / 3, n - 1) * values.std(ddof=1) * math.sqrt(1 + 1 / n),
    )
    assert (band.low, band.high) == pytest.approx(
        (values.mean() - width, math.inf) if worse == "lower" else (-math.inf, values.mean() + width)
    )


def test_one_healthy_run_in_twenty_leaves_the_limits():
    draw, left = np.random.default_rng(0), 0
    for _ in range(2_000):
        values = draw.normal(size=(6, 4))
        bands = [band_of(values[:5, m], "lower", 4) for m in range(4)]
        left += any(values[5, m] < band.low for m, band in enumerate(bands))
    assert left / 2_000 == pytest.approx(0.05, abs=0.015)


def test_regressions_are_named_in_the_direction_that_is_worse(tmp_path):
    against = [load_run(path) for path in healthy(tmp_path)]
    runs = [
        load_run(write(tmp_path / name, {"dimension": dimension, "nc1": 0.3, "cdnv": cdnv, "seconds_like": 99.0}))
        for name, dimension, cdnv in (("good", 2.0, 0.5), ("low", 1.5, 0.5), ("better", 3.0, 0.1), ("wide", 2.0, 0.9))
    ]
    rows = compare_many(runs, against)
    found = regressions(rows, runs)
    assert len(found) == 2
    assert found[0].startswith("low: dimension of 'fc' is 1.5, below 1.")
    assert found[1].startswith("wide: cdnv of 'fc' is 0.9, above 0.5")
    assert {row.marker: row.band is None for row in rows}["seconds_like"]
    undefined = load_run(write(tmp_path / "nan", {"dimension": math.nan, "nc1": 0.3, "cdnv": 0.5, "seconds_like": 0}))
    assert "is undefined, below" in regressions(compare_many([undefined], against), [undefined])[0]


def test_what_cannot_be_compared_is_refused(tmp_path):
    runs = [load_run(path) for path in healthy(tmp_path, 2)]
    with pytest.raises(InputError, match="3 healthy runs"):
        compare_many(runs, runs)
    other = load_run(write(tmp_path / "other", {"dimension": 2.0}, {"probe": "b"}))
    with pytest.raises(InputError, match=r"different protocols \(probe\)"):
        compare_many([*runs, other])


def test_the_command_takes_what_a_shell_makes_of_a_star(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    against = healthy(tmp_path)
    good = write(tmp_path / "good", {"dimension": 2.0, "nc1": 0.3, "cdnv": 0.5, "seconds_like": 0.0})
    low = write(tmp_path / "low<b>", {"dimension": 1.0, "nc1": 0.3, "cdnv": 0.5, "seconds_like": 0.0})
    assert run(["compare", good, "--against", *against]) == 0
    assert "no regression against 5 healthy runs" in capsys.readouterr().out
    assert run(["compare", good, low, "--against", *against, "--page", "page.html"]) == 1
    printed = capsys.readouterr().out.replace("\n", "")
    assert "REGRESSED low<b>: dimension" in printed
    assert "good: " not in printed
    page = Path("page.html").read_text()
    assert "low&lt;b&gt;: dimension" in page
    assert page.count('<div class="status early">') == 2
    assert "<b>low" not in page
    assert "regressed" in page


def test_many_runs_without_a_band(tmp_path, capsys):
    assert run(["compare", *healthy(tmp_path)]) == 0
    assert "dimension" in capsys.readouterr().out
    assert run(["compare", *healthy(tmp_path), "--min", "dimension=90%"]) == 2
    assert "these two" in capsys.readouterr().err
    assert run(["compare", *healthy(tmp_path, 2)]) == 0  # the first is the reference of the second, as ever
    assert "reference" in capsys.readouterr().out
