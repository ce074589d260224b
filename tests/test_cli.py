"""The command line, the page that it makes, and the table that both show."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import pytest

from geomonitor import MARKER_GROUPS, MARKERS
from geomonitor.cli import main, markers_page

PAGE = Path(__file__).parent.parent / "docs/markers.md"


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


def test_the_groups_hold_markers_and_no_costly_ones():
    for names in MARKER_GROUPS.values():
        assert len(set(names)) == len(names)
        assert all(MARKERS[name].cost != "forward" for name in names)
    assert len(MARKER_GROUPS["paper"]) == 18


@pytest.mark.parametrize("name", MARKERS)
def test_every_row_is_one_line_and_has_a_source(name):
    row = MARKERS[name]
    assert row.source
    assert 0 < len(row.description) < 110
    assert "|" not in row.description
    assert "\n" not in row.description
