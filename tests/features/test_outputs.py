"""Logits in what models return, and the linear head behind a layer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from geomonitor.features.layers import Layer
from geomonitor.features.outputs import head_of, logits_in

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


def test_the_head_has_a_row_for_each_label():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    head = head_of(model, Layer("2", "input"), [1, 3])
    assert torch.equal(head.weight, model[2].weight[[1, 3]])
    assert torch.equal(head.bias, model[2].bias[[1, 3]])
    assert not head.weight.requires_grad
    assert head_of(nn.Sequential(nn.Linear(5, 4, bias=False)), Layer("0", "input"), [0]).bias is None


@pytest.mark.parametrize(
    ("layer", "labels"), [(Layer("2", "output"), [0, 1]), (Layer("1", "input"), [0, 1]), (Layer("2", "input"), [0, 4])]
)
def test_other_layers_have_no_head(layer, labels):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    assert head_of(model, layer, labels) == (None, None)
