"""The tree is the flow: a folder imports only from folders above it, without circles; frameworks stay outside."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import geomonitor

CORE = Path(geomonitor.__file__).parent
ORDER = (
    *("errors", "_warnings", "_distributed", "_threads", "_random", "_options"),
    *("probe", "features", "markers", "glue", "metrics", "measure", "history", "alarms"),
    *("monitor", "cadence", "run", "adapter", "decide", "explain", "plots", "report", "cli"),
)
"""From the ground up; ``__init__`` gathers the public names and may import everything."""
GLUE_ORDER = (
    *("nnls.gram_problem", "nnls.block_pivoting", "nnls.block_pivoting_loops", "nnls.block_pivoting_compiled"),
    *("nnls.alternating_directions", "nnls.lawson_hanson", "nnls.semismooth_newton", "nnls.minimal_norm", "nnls.solve"),
    *(
        "pseudo_inverse",
        "cosines",
        "ranks",
        "draws",
        "points",
        "span",
        "anchors",
        "centers",
        "center_slopes",
        "scalars",
    ),
    *("chunks", "joint", "pairwise", "estimates", "result", "manifolds", "options", "instances"),
)
"""Files of ``glue/`` from the ground up: solvers, what they are used for, the definition, its options."""
CONVENIENCE = {("metrics/states.py", "plots"), ("history/history.py", "plots"), ("history/history.py", "alarms")}
"""``plot()`` imports the pictures, and a notebook the status, when they are called; nothing else looks down."""
FRAMEWORKS = {"lightning", "pytorch_lightning", "transformers", "accelerate", "ignite", "keras", "skorch", "fastai"}
FILES = sorted(CORE.rglob("*.py"))
MODULES = {
    ".".join(["geomonitor", *f.relative_to(CORE).with_suffix("").parts]).removesuffix(".__init__") for f in FILES
}


def name_of(file: Path) -> str:
    return ".".join(["geomonitor", *file.relative_to(CORE).with_suffix("").parts]).removesuffix(".__init__")


def imports(tree: ast.AST, *, nested: bool = True) -> Iterator[str]:
    """Full names of what is imported: modules, and names in modules; without ``nested`` only when the file is read."""
    for node in ast.walk(tree) if nested else _when_read(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _when_read(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _when_read(node)


def module_of(name: str) -> str | None:
    """The module of geomonitor that an imported name is, or is in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def folder_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CORE)))
def test_a_folder_imports_from_folders_above_it(file):
    own, place = folder_of(name_of(file)), str(file.relative_to(CORE))
    for name in imports(ast.parse(file.read_text(encoding="utf-8"))):
        assert name.split(".")[0] not in FRAMEWORKS, f"{place} imports {name}: frameworks live in integrations/"
        module = module_of(name)
        if module is None or own == "__init__" or (place, folder_of(module)) in CONVENIENCE:
            continue
        assert folder_of(module) in ORDER, f"{place} imports {name}: import the public names from where they are made"
        assert ORDER.index(folder_of(module)) <= ORDER.index(own), f"{place} imports {name} from below"


def test_every_folder_has_its_place():
    assert {folder_of(module) for module in MODULES} - {"__init__"} <= set(ORDER)


def test_a_file_of_glue_imports_from_files_above_it():
    own = {name.removeprefix("geomonitor.glue."): name for name in MODULES if name.startswith("geomonitor.glue.")}
    assert set(own) - {"nnls"} == set(GLUE_ORDER)
    for place, file in enumerate(GLUE_ORDER):
        path = CORE / "glue" / (file.replace(".", "/") + ".py")
        for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            module = (module_of(name) or "").removeprefix("geomonitor.glue.")
            if module in own:
                assert module in GLUE_ORDER[:place], f"{file} imports {module} from below"


def test_no_circle_of_imports():
    graph = {
        name_of(file): {
            module
            for name in imports(ast.parse(file.read_text(encoding="utf-8")), nested=False)
            if (module := module_of(name)) and module != name_of(file)
        }
        for file in FILES
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CORE)))
def test_no_module_holds_mutable_state(file):
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        value = getattr(node, "value", None)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and ast.unparse(node).split()[0] != "__all__":
            assert not isinstance(value, (ast.List, ast.Dict, ast.Set)), f"{file.name}: {ast.unparse(node)[:60]}"


MARKERS_ORDER = (
    *("inputs", "estimate", "moments", "singular_values", "marchenko_pastur", "spectrum", "factors"),
    *("collapse", "activity", "distances"),
    *("unit_vectors", "instances", "tokens", "routing", "pathways", "routing_layers", "neighbors", "drift"),
    *(
        "logits",
        "coherence",
        "layer_points",
        "formulas",
        "marker",
        "rows",
        "table",
        "transfer",
        "logme",
        "__init__",
        "names",
    ),
)
"""Files of ``markers/``: first what is shared, then the formulas of each kind, then the tables of them all."""


@pytest.mark.parametrize("file", sorted((CORE / "markers").glob("*.py")), ids=lambda f: f.stem)
def test_a_file_of_markers_imports_from_files_above_it(file):
    for name in imports(ast.parse(file.read_text(encoding="utf-8"))):
        module = module_of(name)
        if module is not None and folder_of(module) == "markers":
            other = [*module.split("."), "__init__"][2]
            assert MARKERS_ORDER.index(other) < MARKERS_ORDER.index(file.stem), f"markers/{file.name} imports {name}"
