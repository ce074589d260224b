"""A short soak: hundreds of measurements cost the same time, memory and open files as the first."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import soak


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory and open files are read from /proc")
def test_measurements_cost_the_same_at_the_end_as_at_the_beginning(tmp_path):
    found = soak(200, tmp_path)
    # medians of 20: 1.0 on an idle core, the rest is for a machine that does other work
    assert found.seconds[1] < 2 * found.seconds[0]
    # the records take 60 bytes each (0.4 MB here); one measurement that stayed would be 0.1 MB, 18 MB in all
    assert found.megabytes[1] - found.megabytes[0] < 8
    assert found.handles[0] == found.handles[1]
