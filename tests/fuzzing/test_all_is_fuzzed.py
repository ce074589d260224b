"""A public name that no fuzz test uses has to be excused here, with a reason."""

from __future__ import annotations

import re
from pathlib import Path

import geomonitor as gm

EXCUSED = {
    "Detector": "a type",
    "GeometryDeclineWarning": "words",
    "Snapshot": "what take_snapshot returns",
    "Status": "words",
    "Views": "a choice of how views are drawn; tests/measure/test_views.py",
    "plots": "pictures; the numbers that they show are those of the others",
}


def test_every_public_name_is_fuzzed():
    used = set(re.findall(r"gm\.(\w+)", "".join(p.read_text() for p in Path(__file__).parent.glob("*.py"))))
    assert set(gm.__all__) - used - set(EXCUSED) == set()
