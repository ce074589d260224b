"""The network within a model that has no ``forward`` of its own."""

from __future__ import annotations

from torch import nn

# Classes whose ``forward`` stands for none.
_WITHOUT_FORWARD = ("lightning.pytorch.core.", "pytorch_lightning.core.")


def network_in(model: nn.Module) -> nn.Module:
    """The network that is called: the model, or its only child with parameters if it has no ``forward`` of its own.

    >>> class Steps(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.network, self.loss = nn.Linear(2, 2), nn.CrossEntropyLoss()
    >>> network_in(Steps())
    Linear(in_features=2, out_features=2, bias=True)
    """
    owner = next(kind for kind in type(model).__mro__ if "forward" in vars(kind))
    if "forward" in vars(model) or not (owner is nn.Module or owner.__module__.startswith(_WITHOUT_FORWARD)):
        return model
    networks = [child for child in model.children() if next(child.parameters(), None) is not None]
    alone = len(networks) == 1 and next(model.parameters(recurse=False), None) is None
    return networks[0] if alone else model
