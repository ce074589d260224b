"""Importing geomonitor computes nothing, so a process can be forked afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FORKS = """
import os, sys, torch
{imports}
torch.set_num_threads(2)
child = os.fork()
if child == 0:
    x = torch.randn(400, 300)
    {work}
    os._exit(0)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
IMPORTS = {
    "core": "import geomonitor as gm",
    "adapter": "import geomonitor as gm, geomonitor_integrations.lightning",
    "options": "import geomonitor as gm; gm.GeometryOptions(directions=30, mode='pairwise', pairs=2); gm.Panel()",
}
WORK = {
    "geometry": "gm.manifold_geometry(x, torch.arange(400) % 4, directions=200)",
    "parallel operation": "(torch.randn(2000, 2000) + 1).exp().sum()",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("imports", IMPORTS)
def test_a_process_that_has_imported_geomonitor_can_be_forked(imports, work):
    script = FORKS.format(imports=IMPORTS[imports], work=WORK[work])
    path = os.pathsep.join([p for p in sys.path if p])
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=120, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0
