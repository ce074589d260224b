"""Logits in what models return."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from geomonitor.features.outputs import logits_in

LOGITS = torch.randn(4, 3)


@pytest.mark.parametrize(
    "output",
    [LOGITS, {"logits": LOGITS, "loss": 0}, SimpleNamespace(logits=LOGITS), (LOGITS, None), [LOGITS]],
)
def test_logits_are_found(output):
    assert logits_in(output, [0, 2]) is LOGITS


@pytest.mark.parametrize(
    ("output", "labels"),
    [
        (None, [0, 1]),
        ((), [0, 1]),
        ({"embedding": LOGITS}, [0, 1]),
        (torch.zeros(4, 3, 2), [0, 1]),
        (torch.zeros(4, 1), [0, 0]),
        (torch.zeros(4, 3, dtype=torch.long), [0, 1]),
        (LOGITS, [0, 3]),
        (LOGITS, [-1, 1]),
        (nn.Identity(), [0, 1]),
    ],
)
def test_what_is_no_logits_is_none(output, labels):
    assert logits_in(output, labels) is None
