"""Tiny models of transformers, peft and sentence-transformers with random weights, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.frameworks.common import framework

hf = framework("transformers", "transformers")

CLASSES, TOKENS, WORDS, PADDING = 4, 10, 60, 0
TEXT = {
    **{"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": PADDING},
}
VISION = {
    **{"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "intermediate_size": 48,
}
LABELS = {"num_labels": CLASSES}
STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
SPEECH = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48},
    **{"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 24},
    "vocab_size": 20,
}


def decoder(kind: str, **more: Any) -> Any:
    return getattr(hf, kind)(**{**TEXT, "num_key_value_heads": 1, **more})


def mixtral(**more: Any) -> Any:
    return decoder("MixtralConfig", num_local_experts=3, num_experts_per_tok=2, **more)


def gpt2(**more: Any) -> Any:
    return hf.GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=2, n_positions=40, pad_token_id=PADDING, **more)


def clip() -> Any:
    return hf.CLIPConfig(text_config={**TEXT, "eos_token_id": 1}, vision_config=VISION, projection_dim=24)


def lora(model: nn.Module, head: str, modules: list[str]) -> nn.Module:
    import peft

    config = peft.LoraConfig(r=2, target_modules=[*modules, head], init_lora_weights=False)
    return peft.get_peft_model(model, config)


# Name: how to make the model, what goes in ("text", "left", "image", "sound", "pairs"), layer, and pooling or "".
CLASSIFIERS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "BERT": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT, **LABELS)),
        "text",
        "classifier:input",
    ),
    "DistilBERT": (
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(vocab_size=WORDS, dim=32, n_layers=2, n_heads=2, hidden_dim=48, **LABELS)
        ),
        "text",
        "classifier:input",
    ),
    "RoBERTa": (
        lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**TEXT, **LABELS)),
        "text",
        "classifier.out_proj:input",
    ),
    "ModernBERT": (
        lambda: hf.ModernBertForSequenceClassification(hf.ModernBertConfig(**TEXT, **LABELS)),
        "text",
        "classifier:input",
    ),
    "DeBERTa-v2": (
        lambda: hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(**TEXT, **LABELS)),
        "text",
        "classifier:input",
    ),
    "ELECTRA": (
        lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(**TEXT, embedding_size=32, **LABELS)),
        "text",
        "classifier.out_proj:input",
    ),
    "GPT-2": (lambda: hf.GPT2ForSequenceClassification(gpt2(**LABELS)), "text", "score:input, last"),
    "GPT-2, padded left": (lambda: hf.GPT2ForSequenceClassification(gpt2(**LABELS)), "left", "score:input, last"),
    "Llama": (
        lambda: hf.LlamaForSequenceClassification(decoder("LlamaConfig", **LABELS)),
        "text",
        "score:input, last",
    ),
    "Llama without a mask": (
        lambda: hf.LlamaForSequenceClassification(decoder("LlamaConfig", **LABELS)),
        "no mask",
        "score:input, last",
    ),
    "Mixtral": (lambda: hf.MixtralForSequenceClassification(mixtral(**LABELS)), "left", "score:input, last"),
    "T5": (
        lambda: hf.T5ForSequenceClassification(
            hf.T5Config(
                vocab_size=WORDS,
                d_model=32,
                d_kv=16,
                d_ff=48,
                num_layers=1,
                num_heads=2,
                eos_token_id=1,
                decoder_start_token_id=0,
                **LABELS,
            )
        ),
        "end",
        "classification_head.out_proj:input",
    ),
    "ViT": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**VISION, **LABELS)), "image", "classifier:input"),
    "DINOv2": (
        lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**VISION, **LABELS)),
        "image",
        "classifier:input",
    ),
    "ConvNeXt": (
        lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(**STAGES, **LABELS)),
        "large image",
        "classifier:input",
    ),
    "Swin": (
        lambda: hf.SwinForImageClassification(
            hf.SwinConfig(
                image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, **LABELS
            )
        ),
        "large image",
        "classifier:input",
    ),
    "ResNet": (
        lambda: hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=8, **STAGES, **LABELS)),
        "large image",
        "classifier.1:input",
    ),
    "CLIP": (
        lambda: hf.CLIPForImageClassification(
            hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24, **LABELS)
        ),
        "image",
        "classifier:input",
    ),
    "wav2vec 2.0": (
        lambda: hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**SPEECH, **LABELS)),
        "sound",
        "classifier:input",
    ),
    "LoRA on BERT and its head": (
        lambda: lora(hf.BertForSequenceClassification(hf.BertConfig(**TEXT, **LABELS)), "classifier", ["query"]),
        "text",
        "base_model.model.classifier:input",
    ),
    "LoRA on Llama": (
        lambda: lora(hf.LlamaForSequenceClassification(decoder("LlamaConfig", **LABELS)), "score", ["q_proj"]),
        "text",
        "base_model.model.score:input, last",
    ),
    "BERT compiled": (
        lambda: torch.compile(hf.BertForSequenceClassification(hf.BertConfig(**TEXT, **LABELS)), backend="eager"),
        "text",
        "classifier:input",
    ),
}

OTHERS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "BERT without a head": (lambda: hf.BertModel(hf.BertConfig(**TEXT)), "text", ":output"),
    "Llama without a head": (lambda: hf.LlamaModel(decoder("LlamaConfig")), "left", ":output"),
    "ViT without a head": (lambda: hf.ViTModel(hf.ViTConfig(**VISION)), "image", ":output"),
    "DINOv2 without a head": (lambda: hf.Dinov2Model(hf.Dinov2Config(**VISION)), "image", ":output"),
    "wav2vec 2.0 without a head": (lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SPEECH)), "sound", ":output"),
    "GPT-2 language model": (lambda: hf.GPT2LMHeadModel(gpt2()), "text", "lm_head:input"),
    "Llama language model": (lambda: hf.LlamaForCausalLM(decoder("LlamaConfig")), "text", "lm_head:input"),
    "Gemma 2 language model, whose logits are bounded": (
        lambda: hf.Gemma2ForCausalLM(decoder("Gemma2Config", head_dim=16, sliding_window=8)),
        "left",
        "lm_head:input",
    ),
    "BERT for tokens": (
        lambda: hf.BertForTokenClassification(hf.BertConfig(**TEXT, **LABELS)),
        "text",
        "classifier:input",
    ),
    "Segformer": (
        lambda: hf.SegformerForSemanticSegmentation(
            hf.SegformerConfig(
                hidden_sizes=[8, 8, 16, 16],
                depths=[1, 1, 1, 1],
                num_attention_heads=[1, 1, 2, 2],
                decoder_hidden_size=16,
                **LABELS,
            )
        ),
        "large image",
        "decode_head.classifier:input",
    ),
    "ViTMAE": (
        lambda: hf.ViTMAEForPreTraining(
            hf.ViTMAEConfig(
                **VISION,
                decoder_hidden_size=24,
                decoder_num_hidden_layers=1,
                decoder_num_attention_heads=2,
                decoder_intermediate_size=32,
            )
        ),
        "image",
        "decoder.decoder_pred:input",
    ),
    "DETR": (
        lambda: hf.DetrForObjectDetection(
            hf.DetrConfig(
                use_timm_backbone=False,
                use_pretrained_backbone=False,
                backbone_config=hf.ResNetConfig(embedding_size=8, out_features=["stage4"], **STAGES),
                d_model=32,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                num_queries=5,
                **LABELS,
            )
        ),
        "large image",
        "class_labels_classifier:input",
    ),
}


def inputs(kind: str, items: int) -> dict[str, torch.Tensor]:
    """Inputs of items, seeded; texts have 4 to 10 words."""
    generator = torch.Generator().manual_seed(0)
    if kind.endswith("image"):
        side = 32 if kind.startswith("large") else 16
        return {"pixel_values": torch.randn(items, 3, side, side, generator=generator)}
    if kind == "sound":
        return {"input_values": torch.randn(items, 400, generator=generator)}
    ids = torch.randint(2, WORDS, (items, TOKENS), generator=generator)
    lengths = 4 + torch.arange(items) % (TOKENS - 3)
    mask = torch.arange(TOKENS)[None] < lengths[:, None]
    if kind == "left":
        mask = mask.flip(1)
    if kind == "end":
        ids[torch.arange(items), lengths - 1] = 1
    found = {"input_ids": torch.where(mask, ids, PADDING), "attention_mask": mask.long()}
    if kind == "pairs":
        found["pixel_values"] = torch.randn(items, 3, 16, 16, generator=generator)
    return {"input_ids": found["input_ids"]} if kind == "no mask" else found
