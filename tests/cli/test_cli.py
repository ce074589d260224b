"""The command line, the page that it makes, and the table that both show."""

from __future__ import annotations

import builtins
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from geomonitor import MARKER_GROUPS, MARKERS, History
from geomonitor.cli import main
from geomonitor.cli.app import COMMANDS
from geomonitor.cli.page import markers_page
from tests import scan_targets
from tests.runs_on_disk import write_run

PAGE = Path(__file__).parents[2] / "docs/markers.md"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["geomonitor", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_page_in_docs_is_the_table():
    told = "run: geomonitor markers --markdown > docs/markers.md"
    assert PAGE.read_text(encoding="utf-8") == markers_page(), told


def test_markers_are_told_one_by_one(monkeypatch, capsys):
    pytest.importorskip("typer")
    assert run(monkeypatch, "markers") == 0
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in MARKERS)
    assert run(monkeypatch, "markers", "--group", "default") == 0
    assert "rankme" not in capsys.readouterr().out
    assert run(monkeypatch, "markers", "--markdown") == 0
    assert capsys.readouterr().out == markers_page()


def test_an_unknown_group_is_named(monkeypatch, capsys):
    pytest.importorskip("typer")
    assert run(monkeypatch, "markers", "--group", "papers") == 2
    assert "default, paper, all" in capsys.readouterr().err


def test_a_missing_extra_tells_what_to_install(monkeypatch):
    original = builtins.__import__

    def without_typer(name, *args, **kwargs):
        if name == "typer":
            raise ImportError("No module named 'typer'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_typer)
    assert 'pip install "geomonitor[cli]"' in run(monkeypatch, "markers")


NOT_FOR_HELP = ("torch", "numpy", "scipy", "torchmetrics", "jinja2", "matplotlib")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_imports_nothing_heavy(option):
    script = f"""
import sys
from geomonitor.cli.app import run
assert run(["{option}"]) == 0
assert not set({NOT_FOR_HELP!r}) & set(sys.modules), sorted(set({NOT_FOR_HELP!r}) & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "geomonitor" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_list_has_its_help(name, capsys, monkeypatch):
    assert run(monkeypatch, name, "--help") == 0
    assert f"geomonitor {name} " in capsys.readouterr().out
    assert 0 < len(COMMANDS[name]) < 80


def test_the_status_of_a_run_is_printed_and_is_an_exit_code(monkeypatch, capsys, tmp_path):
    faulty, healthy = write_run(tmp_path / "a", faulty=True), write_run(tmp_path / "b")
    assert run(monkeypatch, "status", str(faulty)) == 1
    assert capsys.readouterr().out.startswith("geometry alarm: The representation has lost 49 % of its dimension")
    assert run(monkeypatch, "status", str(healthy), "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "healthy"


def test_no_command_and_an_unknown_one_are_told(monkeypatch, capsys):
    assert run(monkeypatch) == 2
    assert run(monkeypatch, "repot") == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_report_is_written_beside_the_history(monkeypatch, capsys, tmp_path):
    run_directory, other = write_run(tmp_path / "a", faulty=True), write_run(tmp_path / "b")
    assert run(monkeypatch, "report", str(run_directory), "--compare", str(other)) == 0
    assert re.search(r"geometry\.html \(\d\d kB\)", capsys.readouterr().out)
    html = (run_directory / "geometry.html").read_text(encoding="utf-8")
    assert "beside b" in html
    assert run(monkeypatch, "report", str(run_directory), "--output", str(tmp_path / "new/r.html")) == 0
    assert (tmp_path / "new/r.html").is_file()


def test_compare_fails_where_a_bound_is_broken(monkeypatch, capsys, tmp_path):
    old, new = str(write_run(tmp_path / "old")), str(write_run(tmp_path / "new", faulty=True))
    assert run(monkeypatch, "compare", old, new) == 0
    assert run(monkeypatch, "compare", old, new, "--min", "dimension=45%", "--max", "nc1=1") == 0
    assert "2 bounds kept" in capsys.readouterr().out
    assert run(monkeypatch, "compare", old, new, "--min", "dimension=90%", "--min", "rankme=1") == 1
    printed = capsys.readouterr().out
    assert "FAILED --min dimension=90%: dimension of 'penultimate' is 1.01, below 1.809, 90% of" in printed
    assert printed.count("FAILED") == 1


def test_a_scan_is_read_by_report_and_compare(monkeypatch, capsys, tmp_path):
    torch.manual_seed(0)
    paths = []
    for step in (10, 20):
        paths.append(str(tmp_path / f"step_{step}.pt"))
        torch.save(scan_targets.model().state_dict(), paths[-1])
    scanned = str(tmp_path / "scanned")
    targets = ["--model", "tests.scan_targets:model", "--probe", "tests.scan_targets:probe"]
    options = ["--marker", "dimension", "--marker", "rankme", "--output", scanned]
    assert run(monkeypatch, "scan", *targets, *options, *paths) == 0
    history = History.load(tmp_path / "scanned/geometry.csv")
    assert history.series("penultimate", "rankme").steps.tolist() == [10, 20]
    assert run(monkeypatch, "report", scanned) == 0
    assert run(monkeypatch, "compare", scanned, scanned, "--min", "dimension=100%") == 0
    assert run(monkeypatch, "scan", *targets, "--layer", "body", "--marker", "nc1", "--output", scanned, *paths) == 0
    assert History.load(tmp_path / "scanned/geometry.csv").markers("body") == ("nc1", "nonfinite_rows")
    (first,) = (tmp_path / "scanned").glob("*/geometry.csv")
    assert History.load(first).series("penultimate", "rankme").steps.tolist() == [10, 20]
    capsys.readouterr()
    assert run(monkeypatch, "status", scanned) == run(monkeypatch, "status", str(first.parent)) == 0
    (line,) = capsys.readouterr().err.splitlines()  # of the directory alone
    assert line == f"note: also in {scanned}: {first.parent} (run {first.parent.name})"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", "nowhere"], "nowhere does not exist"),
        (["report"], "Missing argument"),
        (["compare", "a", "b", "--min", "dimension"], "expected MARKER=90%"),
        (["compare", "nowhere", "b"], "nowhere does not exist"),
        (["scan", "--model", "m:n", "--probe", "q", "x.pt"], "must be package.module:name"),
        (["scan", "--model", "m:n", "--probe", "no_such_module:q", "x.pt"], "No module named 'no_such_module'"),
        (["scan", "--model", "m:n", "--probe", "tests.scan_targets:nothing", "x.pt"], "has no 'nothing'"),
        (["scan", "--model", "m:n", "--probe", "tests.scan_targets:NUMBER", "x.pt"], "got int"),
        (
            ["scan", "--model", "tests.scan_targets:broken", "--probe", "tests.scan_targets:probe", "x.pt"],
            "broken failed with ZeroDivisionError: division by zero (scan_targets.py, line",
        ),
        (
            ["scan", "--model", "tests.scan_targets:dataset", "--probe", "tests.scan_targets:probe", "x.pt"],
            "must make a torch.nn.Module; got TensorDataset",
        ),
        (
            ["scan", "--model", "tests.scan_targets:model", "--probe", "tests.scan_targets:probe", "x.pt"],
            "x.pt is no checkpoint file",
        ),
        (
            [
                *("scan", "--model", "tests.scan_targets:model", "--probe", "tests.scan_targets:monitor"),
                *("--layer", "body", "x.pt"),
            ],
            "choose its layers and markers there",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, arguments, told):
    assert run(monkeypatch, *arguments) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_a_checkpoint_of_another_model_is_one_line(monkeypatch, capsys, tmp_path):
    torch.save(scan_targets.Other().state_dict(), tmp_path / "step_1.pt")
    targets = ["--model", "tests.scan_targets:model", "--probe", "tests.scan_targets:probe"]
    assert run(monkeypatch, "scan", *targets, "--output", str(tmp_path), str(tmp_path / "step_1.pt")) == 2
    assert "error: " in (printed := capsys.readouterr().err)
    assert "does not fit the model (of another shape: body.bias (7,) in the file" in printed
    assert "Traceback" not in printed


def test_the_groups_hold_markers_and_no_costly_ones():
    for group, names in MARKER_GROUPS.items():
        assert len(set(names)) == len(names)
        assert all(MARKERS[name].cost != "forward" for name in names) or group == "ssl"  # of views that are asked for
    assert len(MARKER_GROUPS["paper"]) == 18


@pytest.mark.parametrize("name", MARKERS)
def test_every_row_is_one_line_and_has_a_source(name):
    row = MARKERS[name]
    assert row.source
    assert 0 < len(row.description) < 110
    assert "|" not in row.description
    assert "\n" not in row.description
