"""Routers of mixtures of experts in transformers: which are found, and that what is taken is what runs."""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomonitor as gm
from geomonitor.features.routers import find_routers

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for library in ("transformers", "peft"):
    if importlib.util.find_spec(library) is None and not os.environ.get("GEOMONITOR_FRAMEWORKS"):
        pytest.skip(f"{library} is not installed: make test-frameworks", allow_module_level=True)

from tests.zoo import hugging_face as zoo  # noqa: E402

if int(zoo.hf.__version__.partition(".")[0]) < 5:
    pytest.skip(
        "paths and routers of transformers 5; those of 4: tests/features/test_routing.py", allow_module_level=True
    )

pytestmark = pytest.mark.filterwarnings("ignore")
ITEMS = 40


def made(name: str) -> tuple[nn.Module, tuple[str, ...], int, int]:
    make, routers, experts, per_token = zoo.MIXTURES[name]
    torch.manual_seed(0)
    model = make().eval()
    for path in routers:  # decisions that differ clearly, and a bias under which the largest logits are not chosen
        gate = model.get_submodule(path)
        nn.init.normal_(gate.weight, std=0.5)
        if hasattr(gate, "e_score_correction_bias"):
            gate.e_score_correction_bias.normal_(std=0.3)
    return model, routers, experts, per_token


class Chosen:
    """Which experts a model runs, from the inputs of its experts."""

    def __init__(self, model: nn.Module, routers: tuple[str, ...]) -> None:
        self.of: dict[str, tuple[Tensor, Tensor]] = {}
        for path in routers:
            experts = model.get_submodule(path.rpartition(".")[0]).experts
            experts.register_forward_pre_hook(lambda module, args, path=path: self._keep(path, args))

    def _keep(self, path: str, args: tuple[Any, ...]) -> None:
        integers = [each for each in args if not each.is_floating_point()]
        self.of[path] = integers[0], args[-1]


@pytest.mark.parametrize("side", ["text", "left"])
@pytest.mark.parametrize("name", zoo.MIXTURES)
def test_routers_are_found_and_the_experts_that_run_are_counted(name: str, side: str) -> None:
    model, routers, experts, per_token = made(name)
    assert tuple(find_routers(model)) == routers
    inputs, ran = zoo.inputs(side, ITEMS), Chosen(model, routers)
    mask = inputs["attention_mask"].bool()
    with torch.no_grad(), gm.captured_routing(model, mask=mask) as routing:
        model(**inputs)
    assert tuple(routing) == routers
    for path, layer in routing.items():
        indices, weights = ran.of[path]
        counts, mean = torch.zeros(ITEMS, experts), torch.zeros(ITEMS, experts)
        for item in range(ITEMS):
            for place in torch.nonzero(mask[item])[:, 0].tolist():
                row = item * zoo.TOKENS + place
                counts[item, indices[row]] += 1
                mean[item, indices[row]] += weights[row] / weights[row].sum() / mask[item].sum()
        torch.testing.assert_close(layer.assignments.float(), counts)
        torch.testing.assert_close(layer.weights.float(), mean)
        assert layer.assignments.sum() == per_token * mask.sum()
        assert ((layer.entropies > 0) & (layer.entropies <= layer.tokens)).all()  # NaN is not


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", zoo.MIXTURES)
def test_a_monitor_measures_them_without_a_trace(name: str, dtype: torch.dtype) -> None:
    model, routers, experts, per_token = made(name)
    model, inputs = model.to(dtype), zoo.inputs("text", ITEMS)
    before, state = model(**inputs).logits, {key: value.clone() for key, value in model.state_dict().items()}
    items = [{key: value[i] for key, value in inputs.items()} for i in range(ITEMS)]
    probe = gm.ProbeSet.from_unlabelled(items, samples=ITEMS)
    monitor = gm.GeometryMonitor(probe, markers="moe", panel=None, on_error="raise", batch_size=16)
    monitor.measure(model, step=0)
    assert monitor.history.routers == routers
    assert torch.equal(model(**inputs).logits, before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    tokens = int(inputs["attention_mask"].sum())
    for marker in gm.MARKER_GROUPS["moe"]:
        value = float(monitor.history.series("penultimate", marker).values[-1])
        enough = marker != "dead_experts" or tokens * per_token >= 20 * experts
        assert math.isfinite(value) == enough, marker
    assert 0 < monitor.history.series("penultimate", "pathway_distance").values[-1] < 1


def test_no_router_logits_are_asked_for() -> None:
    """``output_router_logits`` would change output and loss."""
    model, routers, _, _ = made("Mixtral")
    inputs = zoo.inputs("text", 8)
    with torch.no_grad(), gm.captured_routing(model, mask=inputs["attention_mask"]) as routing:
        output = model(**inputs, labels=inputs["input_ids"])
    assert output.router_logits is None
    assert output.aux_loss is None
    assert len(routing) == len(routers)


def test_a_model_without_experts_is_refused_in_words() -> None:
    model = zoo.hf.LlamaForCausalLM(zoo.decoder("LlamaConfig"))
    with pytest.raises(gm.InputError, match="no router of a mixture of experts was found in LlamaForCausalLM"):
        find_routers(model)
