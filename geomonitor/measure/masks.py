"""Which tokens of a batch are padding, for the layers that are measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from geomonitor.errors import InputError
from geomonitor.features.layers import Layer
from geomonitor.features.network import network_in
from geomonitor.features.routers import RouterNames, find_routers

_SIDES = ("encoder", "decoder")


def mask_of(model: nn.Module, inputs: Any, layers: Iterable[Layer] = ()) -> Any:
    """The attention mask of a batch, or where its tokens are not the padding that the model's configuration names.

    If the inputs have tokens for a decoder as well, the layers outside the encoder have those of the decoder. Texts
    ``(B, K, L)`` of several choices have a mask ``(B K, L)``, as in the model.

    Args:
        model: with the configuration.
        inputs: of the model.
        layers: that are measured.

    Raises:
        InputError: layers of an encoder and of a decoder, which have different tokens.

    >>> import torch
    >>> mask, own = torch.tensor([[1, 0]]), torch.tensor([[1, 1]])
    >>> inputs = {"attention_mask": mask, "decoder_input_ids": own, "decoder_attention_mask": own}
    >>> mask_of(nn.Identity(), inputs, [Layer("encoder.block.0", "output")]).tolist()
    [[1, 0]]
    >>> mask_of(nn.Identity(), inputs, [Layer("lm_head", "input")]).tolist()
    [[1, 1]]
    """
    if not isinstance(inputs, Mapping):
        return None
    if any(inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds")):
        in_encoder = {_side(layer) == "encoder" for layer in layers}
        if len(in_encoder) > 1:
            raise InputError(
                "layers of the encoder and layers after it have different tokens, and so different masks: measure them "
                "with two monitors"
            )
        if in_encoder != {True}:
            return inputs.get("decoder_attention_mask")
    tokens, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if mask is not None:
        of_choices = isinstance(tokens, Tensor) and tokens.ndim == 3 and tokens.shape == getattr(mask, "shape", None)
        return mask.flatten(0, 1) if of_choices else mask
    padding = getattr(getattr(network_in(model), "config", None), "pad_token_id", None)
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not isinstance(padding, int):
        return None
    found = tokens != padding
    return found if found.any(dim=1).all() else None


def mask_of_routers(model: nn.Module, inputs: Any, routers: RouterNames) -> Any:
    """As :func:`mask_of`, for the tokens that the routers of a mixture of experts see."""
    return mask_of(model, inputs, [Layer(path, "output") for path in find_routers(model, routers)])


def _side(layer: Layer) -> str:
    """Of a decoder's own ``encoder.layer.0`` the outer name counts."""
    return next((part for part in layer.path.split(".") if part in _SIDES), "")
