"""docs/frameworks.md: each cell of its table names tests that exist; adapters are thin."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADAPTERS = ROOT / "integrations/geomonitor_integrations"
ROWS = [
    line for line in (ROOT / "docs/frameworks.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| [\w]+: `test_\w+\.py`", line)
]  # fmt: skip
MOST_LINES = {"transformers": 60, "ignite": 40, "keras": 40, "skorch": 40, "fastai": 40}


def test_the_table_has_all_frameworks():
    names = [row.split(":")[0].strip("| ") for row in ROWS]
    assert names == ["Lightning", "transformers", "Ignite", "Keras", "skorch", "fastai", "Accelerate", "Fabric"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(":")[0].strip("| "))
def test_every_cell_names_a_test(row):
    folder = ROOT / "tests" / ("integrations" if "Lightning" in row else "frameworks")
    first, *cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert len(cells) == 7
    source = (folder / re.search(r"test_\w+\.py", first)[0]).read_text(encoding="utf-8")
    tests = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    for cell in cells:
        for name in re.findall(r"`(test_[\w.]+)`", cell):
            assert (folder / name).is_file() if name.endswith(".py") else name in tests, name


@pytest.mark.parametrize("adapter", MOST_LINES)
def test_an_adapter_is_thin(adapter):
    source = (ADAPTERS / f"{adapter}.py").read_text(encoding="utf-8")
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented |= set(range(node.lineno, node.end_lineno + 1))
    no_code = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for t in tokens if t.type not in no_code for line in range(t.start[0], t.end[0] + 1)}
    assert len(lines - documented) <= MOST_LINES[adapter]


@pytest.mark.parametrize("adapter", MOST_LINES)
def test_a_missing_package_is_named_with_its_extra(adapter):
    source = (ADAPTERS / f"{adapter}.py").read_text(encoding="utf-8")
    assert f"""raise ImportError('{adapter} is missing: pip install "geomonitor[{adapter}]"')""" in source
    assert re.search(rf"^{adapter} = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)
