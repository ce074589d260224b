"""Routers of mixtures of experts in transformers: which are found, and that what is taken is what runs."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomonitor as gm
from geomonitor.features.routers import find_routers
from geomonitor.features.routing import LayerRouting

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for library in ("transformers", "peft"):
    if importlib.util.find_spec(library) is None and not os.environ.get("GEOMONITOR_FRAMEWORKS"):
        pytest.skip(f"{library} is not installed: make test-frameworks", allow_module_level=True)

from tests.zoo import hugging_face as zoo  # noqa: E402
from tests.zoo import mixtures  # noqa: E402

if int(zoo.hf.__version__.partition(".")[0]) < 5:
    pytest.skip(
        "paths and routers of transformers 5; those of 4: tests/features/test_routing.py", allow_module_level=True
    )

pytestmark = pytest.mark.filterwarnings("ignore")
ITEMS = 40


def made(name: str) -> tuple[nn.Module, tuple[str, ...], int, int]:
    make, routers, experts, per_token = mixtures.MIXTURES[name]
    torch.manual_seed(0)
    model = make().eval()
    spread(model, routers)
    return model, routers, experts, per_token


def spread(model: nn.Module, routers: Iterable[str]) -> None:
    """Decisions that differ clearly, and biases and scales under which the largest logits are not chosen."""
    for path in routers:
        for name, value in model.get_submodule(path).named_parameters():
            if value.ndim == 2:
                nn.init.normal_(value, std=0.5)
            elif name == "per_expert_scale":
                nn.init.uniform_(value, 0.5, 2.0)
        for name, value in model.get_submodule(path).named_buffers():
            if name in ("e_score_correction_bias", "balancing_biases"):
                value.normal_(std=0.3)
            elif name == "tid2eid":  # experts of each word
                value.copy_(torch.rand(len(value), 8).topk(value.shape[1]).indices)


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
@pytest.mark.parametrize("name", mixtures.MIXTURES)
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
@pytest.mark.parametrize("name", mixtures.MIXTURES)
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
        rows = marker != "pathway_consistency" or all(find_routers(model)[path].weight is not None for path in routers)
        assert math.isfinite(value) == (enough and rows), marker
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


def routed(model: nn.Module, inputs: dict[str, Tensor], routers: Any = None) -> dict[str, LayerRouting]:
    with torch.no_grad(), gm.captured_routing(model, routers, mask=inputs["attention_mask"]) as routing:
        model(**inputs)
    return routing


def of_items(rows: Tensor, mask: Tensor) -> Tensor:
    """Sums over the tokens of each item."""
    return torch.where(mask[:, :, None] > 0, rows.view(*mask.shape, -1), 0.0).sum(dim=1).double()


@pytest.mark.parametrize("side", ["text", "left"])
@pytest.mark.parametrize("per_token", [1, 2])
def test_llama_4_scales_the_inputs_of_its_experts(side: str, per_token: int) -> None:
    torch.manual_seed(0)
    config = zoo.decoder(
        "Llama4TextConfig", num_local_experts=4, num_experts_per_tok=per_token, head_dim=16, intermediate_size_mlp=48
    )
    model, seen = zoo.hf.Llama4ForCausalLM(config).eval(), {}
    routers = tuple(find_routers(model))
    assert routers == ("model.layers.0.feed_forward.router", "model.layers.1.feed_forward.router")
    spread(model, routers)
    for path in routers:
        block = model.get_submodule(path.rpartition(".")[0])
        block.router.register_forward_pre_hook(lambda _, args, path=path: seen.update({path: [args[0]]}))
        block.experts.register_forward_pre_hook(lambda _, args, path=path: seen[path].append(args[0]))
    inputs = zoo.inputs(side, ITEMS)
    mask = inputs["attention_mask"]
    for path, layer in routed(model, inputs).items():
        tokens, scaled = seen[path]
        sizes = scaled.view(4, *tokens.shape).norm(dim=2).T / tokens.norm(dim=1, keepdim=True)
        torch.testing.assert_close(layer.assignments, of_items((sizes > 0).double(), mask))
        shares = of_items(sizes / sizes.sum(dim=1, keepdim=True), mask) / mask.sum(dim=1, keepdim=True)
        torch.testing.assert_close(layer.weights, shares, rtol=1e-4, atol=1e-6)
        p = (tokens @ model.get_submodule(path).weight.T).sigmoid()
        p = p / p.sum(dim=1, keepdim=True)
        entropies = of_items(torch.special.entr(p).sum(dim=1), mask)[:, 0] / math.log(4)
        torch.testing.assert_close(layer.entropies, entropies, rtol=1e-4, atol=1e-6)


def test_jetmoe_has_experts_in_its_attention_too() -> None:
    torch.manual_seed(0)
    config = zoo.decoder("JetMoeConfig", num_local_experts=4, num_experts_per_tok=2, kv_channels=8)
    model, sizes = zoo.hf.JetMoeForCausalLM(config).eval(), {}
    routers = tuple(find_routers(model))
    assert routers == tuple(
        f"model.layers.{i}.{kind}.router" for i in (0, 1) for kind in ("mlp", "self_attention.experts")
    )
    spread(model, routers)
    for path in routers:
        linear = model.get_submodule(path.rpartition(".")[0]).input_linear
        linear.register_forward_pre_hook(lambda _, args, path=path: sizes.update({path: args[1]}))
    inputs = {"input_ids": zoo.inputs("no mask", ITEMS)["input_ids"]}
    with torch.no_grad(), gm.captured_routing(model, items=ITEMS) as routing:
        model(**inputs)
    for path, layer in routing.items():
        assert layer.assignments.sum(dim=0).tolist() == list(sizes[path])


def test_zaya_skips_its_experts_for_some_tokens() -> None:
    torch.manual_seed(0)
    config = zoo.decoder(
        "ZayaConfig", num_experts=4, num_experts_per_tok=1, head_dim=16, router_hidden_size=12, moe_intermediate_size=16
    )
    model = zoo.hf.ZayaForCausalLM(config).eval()
    routers = tuple(find_routers(model))
    assert routers == mixtures.layers("mlp.gate")
    spread(model, routers)
    inputs, ran = zoo.inputs("left", ITEMS), Chosen(model, routers)
    mask, skipped = inputs["attention_mask"], 0
    for path, layer in routed(model, inputs).items():
        indices, weights = ran.of[path]
        used = nn.functional.one_hot(indices[:, 0], 4) * (weights > 0)
        torch.testing.assert_close(layer.assignments, of_items(used, mask))
        torch.testing.assert_close(layer.weights, of_items(used, mask) / mask.sum(dim=1, keepdim=True))
        assert ((layer.entropies > 0) & (layer.entropies <= layer.tokens)).all()
        skipped += int(mask.sum() - layer.assignments.sum())
    assert skipped > 0


def test_switch_drops_tokens_above_the_capacity_of_an_expert() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": zoo.WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "pad_token_id": 0}
    layers = {"num_layers": 2, "num_sparse_encoder_layers": 1, "num_decoder_layers": 2, "num_sparse_decoder_layers": 1}
    config = zoo.hf.SwitchTransformersConfig(
        **sizes, **layers, num_experts=4, expert_capacity=3, decoder_start_token_id=0
    )
    model = zoo.hf.SwitchTransformersForConditionalGeneration(config).eval()
    encoder, decoder = "encoder.block.1.layer.1.mlp.router", "decoder.block.1.layer.2.mlp.router"
    spread(model, [encoder])
    inputs, ran = zoo.inputs("text", ITEMS), Chosen(model, (encoder,))
    mask = inputs["attention_mask"]
    inputs["decoder_input_ids"] = inputs["input_ids"][:, :3]
    with pytest.raises(gm.InputError, match=rf"name those of one, such as routers=\['{encoder}'\]"):
        find_routers(model)
    with pytest.raises(
        gm.MeasurementError, match=f"{decoder}' ran on 120 tokens.* name the routers that see the tokens"
    ):
        routed(model, inputs, [encoder, decoder])
    layer = routed(model, inputs, [encoder])[encoder]
    torch.testing.assert_close(layer.assignments, of_items(ran.of[encoder][0], mask))
    assert 0 < layer.assignments.sum() < mask.sum()
    torch.testing.assert_close(layer.weights, layer.assignments / mask.sum(dim=1, keepdim=True))
    assert ((layer.entropies > 0) & (layer.entropies <= layer.tokens)).all()
    items = [{key: value[i] for key, value in inputs.items()} for i in range(ITEMS)]
    probe = gm.ProbeSet.from_unlabelled(items, samples=ITEMS)  # the layer is of the decoder, with other tokens
    monitor = gm.GeometryMonitor(probe, markers="moe", panel=None, on_error="raise", batch_size=16, routers=[encoder])
    monitor.measure(model, step=0)
    entropy = monitor.history.series("penultimate", "router_entropy").values[-1]
    assert entropy == pytest.approx(float(layer.entropies.sum() / mask.sum()), rel=1e-5)


def test_advice_for_routers_of_images_works() -> None:
    """ERNIE 4.5 VL has routers for words and for parts of images, which no text reaches."""
    config = zoo.decoder(
        "Ernie4_5_VLMoeTextConfig",
        **{"num_hidden_layers": 3, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": [16, 16]},
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
    )
    model, inputs = zoo.hf.Ernie4_5_VLMoeTextModel(config).eval(), zoo.inputs("text", ITEMS)
    with pytest.raises(gm.MeasurementError, match=r"vision_moe\.gate inside the block") as error:
        routed(model, inputs)
    named = str(error.value).partition("routers=")[2]
    assert named == "['layers.1.mlp.text_moe.gate', 'layers.2.mlp.text_moe.gate']"
    assert all(layer.assignments.sum() > 0 for layer in routed(model, inputs, eval(named)).values())


def test_product_keys_are_no_logits_of_experts() -> None:
    """Doge scores 2 x 8 keys, whose pairs are 64 experts."""
    config = zoo.decoder("DogeConfig", is_moe=True, num_experts=64, num_experts_per_tok=4, hidden_dropout=0.0)
    model, inputs = zoo.hf.DogeForCausalLM(config).eval(), zoo.inputs("text", ITEMS)
    with pytest.raises(gm.InputError, match="or leave the markers of routing out"):
        find_routers(model)
    with pytest.raises(gm.MeasurementError, match=r"router_gate' gave .* from which the chosen experts are not clear"):
        routed(model, inputs, {"model.layers.0.mlp.router_gate": 4})
