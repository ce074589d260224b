"""Capture of routers: which modules, what they give in libraries of today and before, padding, no trace."""

from __future__ import annotations

import math
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomonitor as gm
from geomonitor.features.routers import find_routers
from geomonitor.features.routing import LayerRouting, captured_routing

WIDTH, EXPERTS, K = 7, 5, 2


class Router(nn.Module):
    """As in transformers 5: logits, weights and indices of flattened tokens."""

    def __init__(self, kind: str = "softmax") -> None:
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.randn(EXPERTS, WIDTH)), kind
        self.register_buffer("bias", torch.tensor([3.0, 0, 0, 0, -3.0]))

    def forward(self, x: Tensor) -> Any:
        logits = x.reshape(-1, WIDTH) @ self.weight.T
        scores = logits.sigmoid() if self.kind == "biased sigmoid" else logits.softmax(dim=-1)
        scores = logits.square() if self.kind == "neither" else scores
        chosen = scores + self.bias if self.kind == "biased sigmoid" else scores
        indices = chosen.topk(K, dim=-1).indices
        weights = 2.5 * scores.gather(1, indices)
        spread = torch.zeros_like(logits).scatter(1, indices, weights)  # as gpt-oss in transformers 4
        other = {"old": (indices, weights), "no weights": (logits, indices), "spread": (spread, indices)}
        return other.get(self.kind, (logits, weights, indices))


class Mixture(nn.Module):
    """Layers with experts, each of which sees the tokens plainly; experts do not matter here."""

    def __init__(self, router: Any = Router, layers: int = 2, **config: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.ModuleDict({"gate": router()}) for _ in range(layers)])
        self.config = SimpleNamespace(num_experts=EXPERTS, **config)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            layer["gate"](x)
        return x


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, EXPERTS, bias=False)


def inputs(items: int = 4, length: int = 6) -> Tensor:
    return torch.randn(items, length, WIDTH, generator=torch.Generator().manual_seed(1))


def captured(model: nn.Module, x: Tensor, routers: Any = None, **options: Any) -> dict[str, LayerRouting]:
    with captured_routing(model, routers, **options) as routing:
        model(x)
    return routing


def test_routers_are_found_by_name_and_number_of_experts():
    model = nn.Module()
    model.config = SimpleNamespace(num_local_experts=EXPERTS, num_experts_per_tok=3)
    model.gate = linear()
    model.other = linear()  # E rows, of another name
    model.router = nn.Linear(WIDTH, EXPERTS + 1)  # another number of rows
    model.block = nn.ModuleDict({"router": nn.ModuleDict({"gate": linear()})})  # the outer one gives the decision
    assert {path: router.per_token for path, router in find_routers(model).items()} == {"gate": 3, "block.router": 3}
    assert find_routers(nn.DataParallel(model)).keys() == {"gate", "block.router"}


@pytest.mark.parametrize(("routers", "message"), [
    (None, "no router of a mixture of experts was found in Sequential: give routers="),
    ("gate", "the model has no module 'gate' for routers. It has 0"),
    ([], "routers names no module"),
    ({"0": 0}, "routers\\['0'\\] is a whole number, 1 or more"),
    ([1], "routers must be a name or a list of names"),
])  # fmt: skip
def test_what_is_wrong_with_routers_is_one_sentence(routers, message):
    with pytest.raises(gm.InputError, match=message):
        find_routers(nn.Sequential(nn.Linear(3, 3)), routers)


@pytest.mark.parametrize("kind", ["softmax", "biased sigmoid", "neither", "old", "no weights", "spread"])
def test_the_routers_own_indices_and_weights_of_sum_1(kind):
    model, x = Mixture(lambda: Router(kind)), inputs()
    routing = captured(model, x, mask=torch.ones(4, 6))
    assert list(routing) == ["layers.0.gate", "layers.1.gate"]
    for path, layer in routing.items():
        gate = model.get_submodule(path)
        given = gate(x)
        indices = next(each for each in given if not each.is_floating_point()).view(4, 6, K)
        scores = (x @ gate.weight.T).double()
        probabilities = scores.sigmoid() if kind == "biased sigmoid" else scores.softmax(dim=-1)
        raw = scores.square() if kind == "neither" else probabilities
        for item in range(4):
            counts, weights = torch.zeros(EXPERTS), torch.zeros(EXPERTS)
            for token in range(6):
                chosen = indices[item, token]
                counts[chosen] += 1
                weights[chosen] += (raw[item, token, chosen] / raw[item, token, chosen].sum()).float() / 6
            torch.testing.assert_close(layer.assignments[item].float(), counts)
            torch.testing.assert_close(layer.weights[item].float(), weights)
        shares = probabilities / probabilities.sum(dim=-1, keepdim=True)
        entropies = torch.special.entr(shares).sum(dim=(1, 2)) / math.log(EXPERTS)
        expected = torch.full_like(entropies, math.nan) if kind in ("neither", "old", "spread") else entropies
        torch.testing.assert_close(layer.entropies, expected, rtol=1e-5, atol=0, equal_nan=True)
        largest = torch.equal(indices.sort().values, scores.topk(K).indices.sort().values)
        assert largest == (kind not in ("biased sigmoid", "neither"))


def test_a_plain_linear_gate_is_the_top_k_of_its_softmax():
    model, x = Mixture(linear, num_experts_per_tok=3), inputs()
    layer = captured(model, x, mask=torch.ones(4, 6))["layers.0.gate"]
    p = (x @ model.layers[0]["gate"].weight.T).double().softmax(dim=-1)
    top, indices = p.topk(3)
    weights = torch.zeros_like(p).scatter(-1, indices, top / top.sum(dim=-1, keepdim=True)).mean(dim=1)
    torch.testing.assert_close(layer.weights, weights, rtol=1e-5, atol=1e-8)
    assert layer.assignments.sum() == 3 * 4 * 6


def test_logits_that_are_probabilities_already():
    class Softmax(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(dim=-1)

    x = inputs()
    torch.manual_seed(0)
    soft, plain = Softmax(WIDTH, EXPERTS), linear()
    plain.weight.data, plain.bias = soft.weight.data, soft.bias
    one, other = (captured(nn.Sequential(each), x, {"0": K})["0"] for each in (soft, plain))
    torch.testing.assert_close(one.rows(), other.rows(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_dropped(side):
    model, x = Mixture(), inputs()
    kept = torch.tensor([6, 2, 4, 1])
    mask = torch.arange(6)[None] < kept[:, None]
    mask = mask.flip(1) if side == "left" else mask
    x = torch.where(mask[:, :, None], x, torch.nan)  # what stands at padding does not matter
    routing = captured(model, x, mask=mask)
    for path, layer in routing.items():
        assert layer.tokens.tolist() == kept.tolist()
        for item in range(4):
            alone = captured(model, x[item][mask[item]][None], mask=torch.ones(1, int(kept[item])))[path]
            torch.testing.assert_close(layer.rows()[item : item + 1], alone.rows(), rtol=1e-5, atol=1e-8)


def test_without_a_mask_rows_are_dealt_out_to_items():
    model, x = Mixture(), inputs()
    with_mask, without = captured(model, x, mask=torch.ones(4, 6)), captured(model, x, items=4)
    assert all(torch.equal(with_mask[path].rows(), without[path].rows()) for path in with_mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_finds_the_same_score_function(dtype):
    for kind in ("softmax", "biased sigmoid"):
        model, x = Mixture(lambda kind=kind: Router(kind)), inputs()
        exact = captured(model, x, items=4)["layers.0.gate"]
        half = captured(model.to(dtype), x.to(dtype), items=4)["layers.0.gate"]
        assert half.entropies.isfinite().all()
        torch.testing.assert_close(half.entropies, exact.entropies, rtol=0.02, atol=0)


def test_no_hook_and_no_change_is_left():
    model, x = Mixture(), inputs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = {
        name: module.forward.__func__ for name, module in model.named_modules() if hasattr(module.forward, "__func__")
    }
    captured(model, x, items=4)
    with pytest.raises(RuntimeError, match="stop"), captured_routing(model, items=4):
        raise RuntimeError("stop")
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(module.forward.__func__ is calls[name] for name, module in model.named_modules() if name in calls)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


class Twice(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return super().forward(x + 1)


class OneHot(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return torch.nn.functional.one_hot(logits.argmax(-1), EXPERTS), logits


class TwoScores(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).sigmoid(), super().forward(x)


@pytest.mark.parametrize(("model", "routers", "options", "message"), [
    (lambda: Twice(), None, {"items": 4}, "ran several times"),
    (lambda: Mixture(linear), None, {"items": 4}, "the chosen experts are not clear"),
    (lambda: Mixture(), None, {}, "give an attention mask"),
    (lambda: Mixture(), None, {"items": 5}, "ran on 24 tokens of 5 items"),
    (lambda: Mixture(), None, {"mask": torch.ones(4, 5)}, "ran on 24 tokens, and the attention mask has \\(4, 5\\)"),
    (lambda: Mixture(lambda: OneHot(WIDTH, EXPERTS)), None, {"items": 4}, "no indices of distinct experts"),
    (lambda: Mixture(lambda: TwoScores(WIDTH, EXPERTS)), None, {"items": 4}, "not clear"),
    (lambda: Mixture(), ["layers"], {"items": 4}, "no forward pass reached the routers layers"),
])  # fmt: skip
def test_what_cannot_be_read_is_an_error_after_the_pass(model, routers, options, message):
    made, block = model(), ExitStack()
    block.enter_context(captured_routing(made, routers, **options))
    made(inputs())  # raises nothing
    with pytest.raises(gm.MeasurementError, match=message):
        block.close()
