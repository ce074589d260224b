"""What ``geomonitor`` shows: the public names and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import geomonitor as gm


def test_dir_shows_the_public_names_only():
    assert dir(gm) == sorted(gm.__all__)
    assert not [name for name in dir(gm) if name.startswith("_") and name != "__version__"]
    assert all(hasattr(gm, name) for name in gm.__all__)


def test_dir_is_the_same_whatever_was_imported_before():
    script = "import geomonitor.cli.app, geomonitor.report, geomonitor as gm; assert dir(gm) == sorted(gm.__all__)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_name_has_the_same_home_for_a_type_checker_and_at_run_time():
    read = ast.parse(Path(gm.__file__).read_text(encoding="utf-8"))
    block = next(node for node in read.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in block.body for name in node.names if isinstance(node, ast.ImportFrom)}
    assert seen.pop("plots") == "geomonitor"
    assert seen == {name: f"geomonitor.{module}" for module, names in gm._HOMES.items() for name in names}
    assert {*seen, "plots"} == set(gm.__all__)


def test_importing_geomonitor_adds_little_to_torch():
    script = """
import time, torch
before = set(__import__("sys").modules); import geomonitor as gm
light = set(__import__("sys").modules) - before
assert not [name for name in light if not name.startswith("geomonitor")], sorted(light)[:20]
gm.GeometryMonitor, gm.ProbeSet, gm.Panel
heavy = {"torchmetrics", "scipy.optimize", "scipy.signal", "scipy.stats", "matplotlib", "pandas", "numba"}
assert not heavy & (set(__import__("sys").modules) - before), heavy & set(__import__("sys").modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
