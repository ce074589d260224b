"""The processes of a measurement run one model: with the buffers of the first process, as checkpoints hold them.

DistributedDataParallel gives the buffers of rank 0 to all ranks at a forward pass, so that after a step the running
statistics of batch norm are other ones on each rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from geomonitor._distributed import Processes
from geomonitor.features.watched import bits_sums


@contextmanager
def buffers_of_first(model: nn.Module, processes: Processes) -> Iterator[None]:
    """Let a model have the floating-point buffers of the first process; afterwards each process has its own again.

    Every process has to enter this. Buffers of other shapes and those that are sharded stay as they are.

    Args:
        model: the same in all processes.
        processes: that measure together.

    >>> model = nn.BatchNorm1d(2)
    >>> with buffers_of_first(model, Processes()):
    ...     model.running_mean
    tensor([0., 0.])
    """
    if processes.size == 1:
        yield
        return
    own = {name: buffer for name, buffer in model.named_buffers() if _is_plain(buffer)}
    shapes = {name: (tuple(buffer.shape), str(buffer.dtype)) for name, buffer in own.items()}
    sums = dict(zip(own, bits_sums(own.values()), strict=True))
    found = processes.gathered({name: (shape, sums[name]) for name, shape in shapes.items()})
    common = [
        name for name, (shape, _) in found[0].items() if all(each.get(name, (None,))[0] == shape for each in found)
    ]
    differ = [name for name in common if len({each[name][1] for each in found}) > 1]
    if not differ:
        yield
        return
    shared = processes.of_first([own[name].detach().cpu() for name in differ])
    before = {name: own[name].detach().clone() for name in differ}
    try:
        for name, values in zip(differ, shared, strict=True):
            own[name].data.copy_(values)  # .data: a graph that waits for its backward pass stays valid
        yield
    finally:
        for name, values in before.items():
            own[name].data.copy_(values)


def _is_plain(buffer: Tensor) -> bool:
    whole = type(buffer) is Tensor and buffer.layout == torch.strided and not buffer.is_meta
    return whole and buffer.is_floating_point() and not buffer.is_inference()
