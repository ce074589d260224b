"""What users install: the packages and nothing of the benchmarks, and a small source distribution."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
SDIST_BYTES = 2_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("dist"))
    return [
        Path(next(builder(str(ROOT)).build(directory=folder, versions=["standard"])))
        for builder in (WheelBuilder, SdistBuilder)
    ]


@pytest.fixture
def wheel(built):
    with zipfile.ZipFile(built[0]) as file:
        return file.namelist()


@pytest.fixture
def sdist(built):
    with tarfile.open(built[1]) as file:
        return [name.partition("/")[2] for name in file.getnames()]


def test_the_wheel_has_the_two_packages_and_their_data(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"geomonitor", "geomonitor_integrations"}
    for package in ("geomonitor", "integrations/geomonitor_integrations"):
        here = ROOT / package
        files = [f for f in here.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
        assert {str(f.relative_to(here.parent)) for f in files} <= set(wheel)  # also templates and py.typed


def test_the_source_distribution_has_what_builds_and_reads(sdist):
    needed = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt"}
    assert needed <= set(sdist)
    assert {name.partition("/")[0] for name in sdist if "/" in name} == {
        *("geomonitor", "integrations", "tests", "examples", "docs", "tools"),
    }


def test_nothing_of_the_benchmarks_is_in_either(wheel, sdist):
    assert [name for name in wheel + sdist if "benchmarks" in name or name.endswith((".npz", ".pyc"))] == []


def test_the_tests_that_are_packed_import_nothing_that_is_not(sdist):
    tests = [name for name in sdist if name.startswith("tests/") and name.endswith(".py")]
    assert len(tests) > 50
    using = [
        n for n in tests if "from benchmarks" in (text := (ROOT / n).read_text("utf-8")) or "import benchmarks" in text
    ]
    assert using == []


def test_the_source_distribution_is_small(built):
    assert built[1].stat().st_size < SDIST_BYTES
