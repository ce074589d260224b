"""Views by dropout: the model's own ``nn.Dropout`` layers drop, and what a row loses depends on that row alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from geomonitor.errors import InputError
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.views import seed_of

_WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
DROPOUTS = (nn.Dropout, *_WHOLE_CHANNELS)
"""Layers that drop entries or channels; those that keep mean and variance (AlphaDropout) are left alone."""


@contextmanager
def dropping(model: nn.Module, views: ProbeSet, ids: Tensor) -> Iterator[None]:
    """``nn.Dropout`` layers drop inside the block, all other modules stay as they are.

    What a row loses depends on the seed, the item and the number of the view alone: not on the batch, nor on what else
    is drawn. Attention that drops inside a fused function, which is no module, is not reached.

    Args:
        model: in evaluation mode.
        views: the set of views that is measured.
        ids: ``(B,)`` of the rows of the batch.

    Raises:
        InputError: the model has no such layer.
    """
    modules = [m for m in model.modules() if isinstance(m, DROPOUTS) and m.p > 0]
    if not modules:
        raise InputError(
            'views="dropout" need nn.Dropout layers with p > 0 in the model, which has none: give "crop", "mask", '
            '"window", "noise" or a function'
        )
    names = views.dataset.names
    rows = [divmod(int(i), views.per_class) for i in ids.tolist()]
    calls = [0]
    seed = views.seed

    def dropped(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        calls[0] += 1
        if len(output) != len(rows):
            return output if not rows else _refused(module, output, len(rows))
        shape = output.shape[1:]
        if isinstance(module, _WHOLE_CHANNELS):
            shape = torch.Size([*shape[:1], *(1 for _ in shape[1:])])
        keep = torch.stack(
            [
                torch.rand(shape, generator=torch.Generator().manual_seed(seed_of(seed, names[i], v, calls[0])))
                for i, v in rows
            ]
        )
        return output * (keep >= module.p).to(output) / max(1 - module.p, torch.finfo(output.dtype).eps)  # type: ignore[operator]

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(dropped).remove)
        yield


def _refused(module: nn.Module, output: Tensor, rows: int) -> Tensor:
    raise InputError(
        f"{type(module).__name__} gives a tensor of shape {tuple(output.shape)} for {rows} views: points do not come "
        'first, so views="dropout" cannot be drawn by item. Give another kind of views'
    )
