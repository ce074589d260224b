"""docs/fibers.md has the numbers of benchmarks/fibers.json."""

from __future__ import annotations

import json

import pytest

from benchmarks.fibers_page import NUMBERS, PAGE, _number, tables, with_tables


def test_the_tables_of_the_page_are_those_of_the_numbers():
    rows = json.loads(NUMBERS.read_text())
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page, rows), "run: python benchmarks/fibers_page.py"
    assert all(f"| {seed}, collapsed |" in tables(rows) for seed in rows)


@pytest.mark.parametrize(("value", "shown"), [(0.00123, "0.0012"), (0.5, "0.5"), (123.4, "120"), (4e-5, "0.00004")])
def test_numbers_have_two_digits(value, shown):
    assert _number(value) == shown
