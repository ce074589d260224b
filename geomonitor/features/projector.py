"""The projector that ends a network without logits, as in contrastive learning, and what comes before it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from geomonitor.features.trace import Trace, common_path, tensors_in

_PROJECTOR = re.compile(r"proj|predictor|contrast|embed|simclr|byol|barlow|vicreg", re.IGNORECASE)
_CLASSIFIER = re.compile(r"classif|score|logit", re.IGNORECASE)


def is_projector(path: str, modules: Mapping[str, nn.Module], tensor: Tensor, width: int) -> bool:
    """Whether an output that is wider than there are classes is an embedding: by name, by norm one, or as an MLP."""
    if tensor.ndim != 2 or tensor.shape[1] == 1 or _CLASSIFIER.search(path):
        return False
    norms = torch.linalg.vector_norm(tensor.float(), dim=1)
    if _PROJECTOR.search(path) or bool(torch.allclose(norms, torch.ones_like(norms), atol=1e-3)):
        return True
    block = _projector_of(path, modules)
    return block != path and sum(isinstance(m, nn.Linear) for m in modules[block].modules()) > 1


def _projector_of(path: str, modules: Mapping[str, nn.Module]) -> str:
    """The block to which the last layer of a projector belongs: by name, or as ``nn.Sequential``."""
    best, above = path, path
    while "." in above:
        above = above.rpartition(".")[0]
        if _PROJECTOR.search(above.rpartition(".")[2]) or isinstance(modules[above], nn.Sequential):
            best = above
    return best


def _that_ran(trace: Trace, block: str) -> str:
    """A block, or its layer that ended first if the model calls the layers of the block one by one."""
    inside = (call.path for call in trace.calls if call.path.startswith(f"{block}."))
    return block if trace.call_of(block) is not None else next(inside, block)


def follows_layers(trace: Trace, modules: Mapping[str, nn.Module], head: str) -> bool:
    """Whether layers come before a projector; a network that is one block as a whole would give its own input."""
    call = trace.call_of(_that_ran(trace, _projector_of(head, modules)))
    return call is None or any(trace.sources(tensor)[0] for tensor in tensors_in(call.takes))


def before_projector(trace: Trace, modules: Mapping[str, nn.Module], head: str) -> str:
    """What takes the representation: the first block of a row of projectors, such as BYOL's predictor and projector."""
    block = _projector_of(head, modules)
    while (call := trace.call_of(_that_ran(trace, block))) is not None and (given := tensors_in(call.takes)):
        mixing, _ = trace.sources(given[0])
        owner = common_path([operation.within for operation in mixing]) if mixing else ""
        before = _projector_of(owner, modules) if owner else ""
        if not before or before == block or not _PROJECTOR.search(before):
            break
        block = before
    return _that_ran(trace, block)
