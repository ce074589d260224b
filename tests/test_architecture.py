"""The tree shows the flow: a module imports from lower-numbered stages only, and frameworks stay outside the core."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import geomonitor

CORE = Path(geomonitor.__file__).parent
STAGES = [
    {"budget", "drawing", "errors", "isolation", "processes", "telling"},
    {"datasets", "origins", "probe", "shifts"},
    {"layers", "capture", "outputs"},
    {"markers"},
    {"reservoir", "metric_states", "metrics"},
    {"run_file", "measurement", "probe_pass", "passive", "snapshot", "records", "curves", "plots"},
    {"decline"},
    {"detectors"},
    {"panel", "replay"},
    {"alerts", "options"},
    {"monitor", "__init__"},
    {"runs", "checkpoints", "scan", "compare"},
    {"report"},
    {"cli"},
]
STAGE = {module: number for number, stage in enumerate(STAGES) for module in stage}
FRAMEWORKS = {"lightning", "pytorch_lightning", "transformers", "accelerate"}
FILES = sorted(CORE.rglob("*.py"))


def imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def stage_of(file: Path) -> int:
    return STAGE[file.relative_to(CORE).parts[0].removesuffix(".py")]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CORE)))
def test_imports_go_down_the_flow(file):
    for name in imports(file):
        root, *rest = name.split(".")
        assert root not in FRAMEWORKS, f"{file.name} imports {name}: frameworks live in integrations/"
        if root == "geomonitor" and rest and rest[0] in STAGE:
            assert STAGE[rest[0]] <= stage_of(file), f"{file.name} imports {name} from a later stage"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CORE)))
def test_no_module_holds_mutable_state(file):
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        value = getattr(node, "value", None)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and ast.unparse(node).split()[0] != "__all__":
            assert not isinstance(value, (ast.List, ast.Dict, ast.Set)), f"{file.name}: {ast.unparse(node)[:60]}"
