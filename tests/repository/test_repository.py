"""The files around the code: they parse, they agree with pyproject.toml, and the version stands in one place."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

import geomonitor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
WORKFLOWS = ROOT / ".github/workflows"
YAML_FILES = [
    *sorted((ROOT / ".github").rglob("*.yml")),
    *(ROOT / name for name in (".pre-commit-config.yaml", "mkdocs.yml", "CITATION.cff")),
]
NAME = re.compile(r"[A-Za-z0-9._-]+")


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps_of(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_parses(path):
    assert isinstance(load(path), dict)


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_every_job_runs_somewhere_and_every_step_does_something(name):
    workflow = load(WORKFLOWS / name)
    assert workflow[True]  # YAML 1.1 reads the key `on` so
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert ("runs-on" in job) != ("uses" in job)
    for step in steps_of(workflow):
        assert ("run" in step) != ("uses" in step)
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])


def test_ci_runs_every_version_that_is_promised():
    versions = load(WORKFLOWS / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    promised = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    assert versions == promised
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == versions[0]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + versions[0].replace(".", "")


def test_ci_runs_what_runs_on_one_machine():
    commands = [step["run"] for step in steps_of(load(WORKFLOWS / "ci.yml")) if "run" in step]
    local = (ROOT / ".ci/run").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for target in ("check", "docs", "test"):
        assert f"make {target}" in commands
        assert f"\nmake {target}\n" in local
    assert {command.split()[1] for command in commands} <= set(targets)


def test_only_the_job_that_publishes_gets_a_token_and_it_waits_for_the_tests():
    workflow = load(WORKFLOWS / "release.yml")
    publish = workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert set(publish["needs"]) == {"ci", "version"}
    assert [name for name, job in workflow["jobs"].items() if "permissions" in job] == ["publish"]
    assert "secrets." not in (WORKFLOWS / "release.yml").read_text(encoding="utf-8")


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "geomonitor/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", geomonitor.__version__)
    assert "version" not in PROJECT
    assert "version" not in load(ROOT / "CITATION.cff")


def test_the_lowest_versions_are_those_of_pyproject():
    lowest = runpy.run_path(str(ROOT / "tools/lowest.py"))["lowest"]()
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    assert "".join(line for line in lines if not line.startswith("#")) == lowest, "run `python tools/lowest.py`"


def test_a_package_has_the_same_lower_bound_in_every_extra():
    bounds: dict[str, set[str]] = {}
    for requirement in [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]:
        bounds.setdefault(NAME.match(requirement)[0], set()).add(requirement)
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_the_changelog_begins_with_what_is_not_released():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[?([^]\n]+)", text, flags=re.MULTILINE)
    assert sections[0] == "Unreleased"
    kinds = re.findall(r"^### (.+)$", text, flags=re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
