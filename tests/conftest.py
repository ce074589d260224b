"""What holds for every test."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def torch_starts_from_one_seed() -> None:
    """A test draws the same numbers in any order; of Python's and NumPy's streams pytest-randomly takes care."""
    torch.manual_seed(0)
