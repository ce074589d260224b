"""Nothing is unpickled, evaluated or run, and no name from a run reaches a path."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import geomonitor
import geomonitor_integrations

PACKAGES = [Path(package.__file__).parent for package in (geomonitor, geomonitor_integrations)]
FILES = sorted(file for package in PACKAGES for file in package.rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "subprocess"}
CHILD = "apart.py"
"""The one file that takes objects from another process: from a child that it has forked itself, through a pipe."""
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "pandas.read_pickle", "pd.read_pickle", "np.load", "numpy.load", "torch.hub.load",
}  # fmt: skip


def unsafe(source: str) -> list[str]:
    """What in a source text unpickles, evaluates or runs something."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            if [alias.name for alias in node.names] != ["UnpicklingError"]:  # to catch it is safe
                found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if name in UNSAFE_CALLS or (name == "torch.load" and options.get("weights_only") != "True"):
                found.append(ast.unparse(node))
    return found


def test_only_objects_of_a_child_process_are_taken():
    taking = [file.name for file in FILES if "from multiprocessing" in file.read_text(encoding="utf-8")]
    assert taking == [CHILD]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_nothing_is_unpickled_evaluated_or_run(file):
    assert unsafe(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from dill import loads", "torch.load(p)", "torch.load(p, weights_only=False)", "eval('1')",
     "x = yaml.load(t)", "np.load(p, allow_pickle=True)", "import subprocess"],
)  # fmt: skip
def test_the_search_finds_what_it_should(source):
    assert unsafe(source)


def test_the_search_lets_the_safe_form_pass():
    assert unsafe("torch.load(p, weights_only=True); import torch; model.eval(); yaml.safe_load(t)") == []
