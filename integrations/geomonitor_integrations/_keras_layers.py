"""A Keras model on torch as a module whose children are its layers, by the names of ``get_layer``."""

from __future__ import annotations

from typing import Any

import keras
from torch import nn


class KerasLayers(nn.Module):
    """Runs a Keras model; torch does not see the layers that Keras keeps in lists."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        layers = named_layers(model)
        for name, layer in layers.items():
            self.add_module(name, layer)
        heads = [name for name, layer in layers.items() if isinstance(layer, keras.layers.Dense)]
        self.head_path = heads[-1] if heads else None
        """whose input is ``"penultimate"``"""
        self.keras_model = (model,)  # in a tuple: not a child, whose parameters would count twice

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The model in evaluation mode, which is an argument in Keras."""
        return self.keras_model[0](named or (inputs[0] if len(inputs) == 1 else list(inputs)), training=False)


def named_layers(model: Any) -> dict[str, Any]:
    """All layers of a model by name, those of inner models as well; of equal names the first one counts."""
    layers: dict[str, Any] = {}

    def visit(parent: Any) -> None:
        for layer in parent._layers:
            layers.setdefault(layer.name.replace(".", "_"), layer)
            visit(layer)

    visit(model)
    return layers
