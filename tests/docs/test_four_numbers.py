"""What docs/concepts/four_numbers.md states of the four numbers, and of their curves, is measured."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import geomonitor as gm

DOCS = Path(__file__).parents[2] / "docs"
PAGE = " ".join((DOCS / "concepts/four_numbers.md").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("concept_pictures", DOCS / "concept_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(pictures: ModuleType, marker: str, **clouds: float) -> float:
    return float(getattr(gm.manifold_geometry(*pictures.clouds(**clouds), directions=400), marker))


@pytest.mark.parametrize(
    ("marker", "clouds", "words"),
    [
        ("dimension", {"directions": 1}, r"a class on a line has ([\d.]+),"),
        ("dimension", {"directions": 16}, r"levels off at (\d) from some 16 directions on"),
        ("dimension", {"size": 0.3}, r"6 directions have ([\d.]+) if they are small \(size 0.3\)"),
        ("dimension", {"size": 2}, r"and ([\d.]+) if they are large \(size 2\)"),
        ("dimension", {"size": 2, "directions": 8}, r"at size 2 it is ([\d.]+) with 8 directions"),
        ("dimension", {"size": 2, "directions": 40}, r"and ([\d.]+) with 40\."),
        ("radius", {"size": 0.3}, r"it is ([\d.]+) at size 0.3"),
        ("radius", {"size": 0.1}, r"and ([\d.]+) at size 0.1\."),
    ],
)
def test_a_number_of_the_page_is_measured(pictures, marker, clouds, words):
    stated = re.search(words, PAGE)[1]
    digits = len(stated.partition(".")[2])
    assert f"{measured(pictures, marker, **clouds):.{digits}f}" == stated


@pytest.mark.parametrize(
    ("marker", "changed", "rises", "words"),
    [
        ("dimension", "directions", True, "the effective dimension rises with the number of directions"),
        ("radius", "size", True, "the effective radius rises with the size of the classes"),
        ("utility", "size", False, "the utility falls as the classes grow"),
        ("capacity", "distance", True, "the capacity rises with the distance of the centres"),
        ("capacity", "size", False, "it falls if they come closer, grow, or vary in more directions"),
        ("capacity", "directions", False, "it falls if they come closer, grow, or vary in more directions"),
    ],
)
def test_a_curve_goes_as_the_page_says(pictures, marker, changed, rises, words):
    assert words in PAGE
    values = {"directions": (1, 3, 6, 12, 24), "size": (0.3, 0.6, 1, 2, 3), "distance": (0.1, 0.5, 1, 2, 3)}[changed]
    more = {"directions": 12} if marker == "utility" else {}
    curve = np.array([measured(pictures, marker, **{changed: value}, **more) for value in values])
    assert (np.diff(curve) > 0).all() if rises else (np.diff(curve) < 0).all()
