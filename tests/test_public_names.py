"""What ``geomonitor`` shows: the public names and nothing else."""

from __future__ import annotations

import subprocess
import sys

import geomonitor as gm


def test_dir_shows_the_public_names_only():
    assert dir(gm) == sorted(gm.__all__)
    assert not [name for name in dir(gm) if name.startswith("_") and name != "__version__"]
    assert all(hasattr(gm, name) for name in gm.__all__)


def test_dir_is_the_same_whatever_was_imported_before():
    script = "import geomonitor.cli.app, geomonitor.report, geomonitor as gm; assert dir(gm) == sorted(gm.__all__)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
