"""What routers give: masks, weights spread over experts, one expert per token, more than routing."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geomonitor.errors import MeasurementError
from geomonitor.features.decisions import Decisions, decisions
from geomonitor.features.routers import Router, find_routers

EXPERTS, TOKENS = 5, 60


def logits() -> Tensor:
    return torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(0)) * 2


def read(output: Any, per_token: int | None = None, score: str = "softmax", known: tuple[int, ...] = (EXPERTS,)) -> Any:
    found = decisions(output, Router(nn.Identity(), None, per_token, known, score), "gate")
    assert isinstance(found, Decisions)
    return found


SCORES = {
    "softmax": lambda x: x.softmax(dim=1),
    "sigmoid": lambda x: x.sigmoid(),
    "sqrtsoftplus": lambda x: (1 + x.exp()).log().sqrt(),
}


@pytest.mark.parametrize("k", [1, 2, EXPERTS])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_score_function_is_the_one_of_the_weights(score, k, dtype):
    x = logits()
    scores = SCORES[score](x)
    indices = (scores - torch.arange(EXPERTS)).topk(k, dim=1).indices
    found = read((x.to(dtype), (2.5 * scores.gather(1, indices)).to(dtype), indices))
    shares = (scores / scores.sum(dim=1, keepdim=True)).double()
    torch.testing.assert_close(found.probabilities, shares, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.02)
    other = {name: each(x) / each(x).sum(dim=1, keepdim=True) for name, each in SCORES.items() if name != score}
    assert all((each - shares).abs().amax() > 0.05 for each in other.values())


@pytest.mark.parametrize("score", [*SCORES, "another"])
def test_a_single_weight_of_1_leaves_the_score_function_to_what_the_model_says(score):
    x = logits()
    indices = x.topk(1, dim=1).indices
    almost = 1 / (1 + 1e-6 / x.sigmoid().gather(1, indices))  # LFM2
    for weights in (torch.ones(TOKENS, 1), almost):
        found = read((x, weights, indices), score=score)
        if score == "another":
            assert found.probabilities is None
        else:
            shares = SCORES[score](x) / SCORES[score](x).sum(dim=1, keepdim=True)
            torch.testing.assert_close(found.probabilities, shares.double(), rtol=0, atol=1e-6)
    assert read((x, 1 + torch.rand(TOKENS, 1), indices)).probabilities is None


def test_what_a_model_says_of_its_score_function():
    def score(config: Any = None, gate_bias: bool = False, block_bias: bool = False) -> str:
        model = nn.Module()
        model.config = SimpleNamespace(num_experts=EXPERTS, **(config or {}))
        model.block = nn.ModuleDict({"gate": nn.Linear(3, EXPERTS)})
        model.block["gate"].register_buffer("e_score_correction_bias", torch.ones(3) if gate_bias else None)
        model.block.register_buffer("expert_bias", torch.ones(3) if block_bias else None)
        return find_routers(model)["block.gate"].score

    assert score() == "softmax"
    assert score(gate_bias=True) == score(block_bias=True) == "sigmoid"
    assert score({"scoring_func": "sqrtsoftplus"}, gate_bias=True) == "sqrtsoftplus"


def test_probabilities_stay_those_of_the_router_if_weights_are_scaled_by_expert():
    p = logits().softmax(dim=1)
    weights, indices = p.topk(2, dim=1)
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    found = read((p, weights * scale[indices], indices))
    torch.testing.assert_close(found.probabilities, p.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.weights.sum(dim=1), torch.ones(TOKENS).double())
    assert (found.weights[:, 0] < found.weights[:, 1]).any()


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("k", [1, 2])
def test_weights_that_are_0_for_other_experts_go_with_their_logits(order, k):
    x = logits()
    indices = x.topk(k, dim=1).indices
    spread = torch.zeros_like(x).scatter(1, indices, x.sigmoid().gather(1, indices))
    found = read((spread, x)[::order], per_token=k)
    assert torch.equal(found.indices, indices)
    shares = spread.gather(1, indices) / spread.sum(dim=1, keepdim=True)
    torch.testing.assert_close(found.weights, shares.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.probabilities, (x.sigmoid() / x.sigmoid().sum(dim=1, keepdim=True)).double())
    for wrong in ((spread.flip(1), x), (x.sigmoid(), x)):
        with pytest.raises(MeasurementError, match="not clear"):
            read(wrong[::order], per_token=k)


def test_a_mask_shows_tokens_that_were_dropped():
    x = logits()
    p, first = x.softmax(dim=1).max(dim=1, keepdim=True)
    mask = nn.functional.one_hot(first[:, 0], EXPERTS)
    mask[::7] = 0
    found = read((mask.view(6, 10, EXPERTS), p.view(6, 10, 1), x.view(6, 10, EXPERTS)))
    assert torch.equal(torch.zeros_like(mask).scatter(1, found.indices, found.weights.long()), mask)
    torch.testing.assert_close(found.probabilities, x.double().softmax(dim=1))
    with pytest.raises(MeasurementError, match="no indices of distinct experts"):
        read((mask + mask.roll(1, dims=1), p, x))
    both = torch.tensor([[0, 1], [1, 0]])
    assert torch.equal(read((torch.ones(2, 2), both), per_token=2, known=(2,)).indices, both)  # no mask: all experts


def test_what_follows_the_weights_and_wider_logits_are_not_taken_for_them():
    x, other = logits(), torch.rand(TOKENS, 2)
    weights, indices = x.softmax(dim=1).topk(2, dim=1)
    found = read((x, weights, indices, other, torch.rand(TOKENS, 64)))
    torch.testing.assert_close(found.weights, (weights / weights.sum(dim=1, keepdim=True)).double())
    wider = torch.cat([x, torch.zeros(TOKENS, 1)], dim=1)
    skipping = wider.softmax(dim=1).gather(1, indices).masked_fill((torch.arange(TOKENS) % 3 == 0)[:, None], 0.0)
    found = read((wider, skipping, indices))
    assert found.experts == EXPERTS
    torch.testing.assert_close(found.probabilities, wider.double().softmax(dim=1))
    assert found.weights.sum(dim=1).round(decimals=6).tolist() == [float(i % 3 != 0) for i in range(TOKENS)]


def test_fewer_logits_than_experts_are_no_logits_of_experts():
    with pytest.raises(MeasurementError, match="not clear"):
        read(logits(), per_token=2, known=(EXPERTS**2,))
    assert read(logits(), per_token=2, known=(EXPERTS - 1,)).experts == EXPERTS


def test_of_logits_alone_the_score_function_that_the_model_names_and_none_with_a_bias():
    router = Router(nn.Identity(), None, 2, (EXPERTS,), "sigmoid")
    found = decisions(logits(), router, "gate")
    shares = logits().double().sigmoid() / logits().double().sigmoid().sum(dim=1, keepdim=True)
    torch.testing.assert_close(found.probabilities, shares)
    model = nn.Module()
    model.config = SimpleNamespace(num_experts=EXPERTS, num_experts_per_tok=2)
    model.block = nn.ModuleDict({"gate": nn.Linear(3, EXPERTS)})
    model.block.register_buffer("expert_bias", torch.ones(EXPERTS))  # LFM2 in transformers 4
    with pytest.raises(MeasurementError, match=r"not clear \(a bias takes part"):
        decisions(logits(), find_routers(model)["block.gate"], "block.gate")


class Own(nn.Module):
    """A router with rows for more than its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = EXPERTS, 3
        self.down, self.up = nn.Linear(8, EXPERTS + 3), nn.Linear(EXPERTS + 3, EXPERTS + 1)


def test_a_router_that_says_its_number_of_experts_is_found():
    model = nn.Module()
    model.config = SimpleNamespace(num_experts=EXPERTS + 3, num_experts_per_tok=2)
    model.block = nn.ModuleDict({"router": Own()})
    (path, router), *more = find_routers(model).items()
    assert (path, more, router.per_token) == ("block.router", [], 3)
    assert router.experts == (EXPERTS, EXPERTS + 3)
    del model.config
    assert find_routers(model)["block.router"].weight is None
    model.block["router"] = nn.Identity()
    model.block["router"].num_experts = EXPERTS
    with pytest.raises(Exception, match="no router"):
        find_routers(model)


def test_advice_names_the_module_inside_that_gives_logits():
    module = nn.Sequential(nn.Linear(3, EXPERTS))
    router = Router(module, module[0].weight, None, (EXPERTS,))
    with pytest.raises(MeasurementError, match=r"such as routers=\{'gate.0': 2\}, or leave the markers"):
        decisions((torch.ones(4, EXPERTS).long(), logits()[:4]), router, "gate")
    assert math.isclose(float(decisions(logits(), router._replace(per_token=2), "gate").weights.sum()), TOKENS)
