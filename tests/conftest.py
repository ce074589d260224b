"""What holds for every test."""

from __future__ import annotations

import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Workers of xdist, and what they start, share the cores: with more threads than cores tests take a multiple."""
    workers = config.getoption("numprocesses", None)
    if workers:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


@pytest.fixture(autouse=True)
def torch_starts_from_one_seed() -> None:
    """A test draws the same numbers in any order; of Python's and NumPy's streams pytest-randomly takes care."""
    torch.manual_seed(0)
