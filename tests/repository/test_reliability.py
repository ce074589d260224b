"""Every test that ``docs/reliability.md`` names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(?:python -m pytest )?((?:T|L|tests)/[\w/]+\.py)(?:::(\w+))?", PAGE)


def test_the_page_names_tests():
    assert len(NAMED) > 50


def test_each_named_test_exists():
    for place, name in NAMED:
        file = ROOT / re.sub(r"^T/", "tests/", re.sub(r"^L/", "tests/integrations/", place))
        assert file.is_file(), place
        assert not name or re.search(rf"(def|class) {name}\b", file.read_text(encoding="utf-8")), f"{place}::{name}"
