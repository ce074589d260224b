"""Tiny language models of transformers with experts and random weights, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tests.zoo import hugging_face as zoo


def layers(router: str) -> tuple[str, ...]:
    """Paths of the routers of two layers."""
    return (f"model.layers.0.{router}", f"model.layers.1.{router}")


_GATES = layers("mlp.gate")
# Name: a language model with experts, its routers, experts and experts per token.
MIXTURES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], int, int]] = {
    "Mixtral": (lambda: zoo.hf.MixtralForCausalLM(zoo.mixtral()), _GATES, 3, 2),
    "OLMoE": (
        lambda: zoo.hf.OlmoeForCausalLM(
            zoo.decoder("OlmoeConfig", num_experts=8, num_experts_per_tok=3, eos_token_id=1)
        ),
        _GATES,
        8,
        3,
    ),
    "Qwen2-MoE": (
        lambda: zoo.hf.Qwen2MoeForCausalLM(
            zoo.decoder(
                "Qwen2MoeConfig",
                **{"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
                shared_expert_intermediate_size=16,
            )
        ),
        _GATES,
        8,
        2,
    ),
    "Qwen3-MoE, as many experts as units": (
        lambda: zoo.hf.Qwen3MoeForCausalLM(
            zoo.decoder(
                "Qwen3MoeConfig",
                **{"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 16, "head_dim": 16},
            )
        ),
        _GATES,
        32,
        4,
    ),
    "DeepSeek-V3": (
        lambda: zoo.hf.DeepseekV3ForCausalLM(
            zoo.decoder(
                "DeepseekV3Config",
                **{"num_hidden_layers": 3, "num_key_value_heads": 2, "first_k_dense_replace": 1},
                **{
                    "n_routed_experts": 8,
                    "num_experts_per_tok": 2,
                    "n_group": 2,
                    "topk_group": 1,
                    "n_shared_experts": 1,
                },
                **{"moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 16},
                **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
            )
        ),
        ("model.layers.1.mlp.gate", "model.layers.2.mlp.gate"),
        8,
        2,
    ),
    "gpt-oss": (
        lambda: zoo.hf.GptOssForCausalLM(
            zoo.decoder("GptOssConfig", num_local_experts=4, num_experts_per_tok=2, head_dim=16, eos_token_id=1)
        ),
        layers("mlp.router"),
        4,
        2,
    ),
    "LoRA on Mixtral": (
        lambda: zoo.lora(zoo.hf.MixtralForCausalLM(zoo.mixtral()), "lm_head", ["q_proj"]),
        tuple(f"base_model.model.{path}" for path in _GATES),
        3,
        2,
    ),
    "Gemma 4, with a scale for each expert": (
        lambda: zoo.hf.Gemma4ForCausalLM(
            zoo.decoder(
                "Gemma4TextConfig",
                **{"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 16},
                **{"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": zoo.WORDS, "head_dim": 8},
                **{"global_head_dim": 8, "num_kv_shared_layers": 0},
            )
        ),
        layers("router"),
        6,
        2,
    ),
    "DeepSeek-V4, of which the first layer goes by words": (
        lambda: zoo.hf.DeepseekV4ForCausalLM(
            zoo.decoder(
                "DeepseekV4Config",
                **{"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16},
                **{"q_lora_rank": 16, "qk_rope_head_dim": 8, "mlp_layer_types": ["hash_moe", "moe"]},
            )
        ),
        layers("mlp.gate"),
        8,
        2,
    ),
    "LongCat-Flash, with experts that do nothing": (
        lambda: zoo.hf.LongcatFlashForCausalLM(
            zoo.decoder(
                "LongcatFlashConfig",
                **{
                    "num_hidden_layers": 4,
                    "num_layers": 2,
                    "num_key_value_heads": 2,
                    "n_routed_experts": 6,
                    "zero_expert_num": 3,
                },
                **{"moe_topk": 3, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 48, "q_lora_rank": 16},
                **{"kv_lora_rank": 16, "v_head_dim": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "head_dim": 8},
            )
        ),
        layers("mlp.router"),
        9,
        3,
    ),
    "Inkling, whose router also weights shared experts": (
        lambda: zoo.hf.InklingForCausalLM(
            zoo.decoder(
                "InklingTextConfig",
                **{"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2, "head_dim": 16},
                **{"moe_intermediate_size": 16, "mlp_layer_types": ["sparse", "sparse"]},
            )
        ),
        layers("mlp.gate"),
        8,
        2,
    ),
}
