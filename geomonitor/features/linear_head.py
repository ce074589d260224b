"""The linear head that a layer feeds: its weights for the probe's classes, by its type or from running it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomonitor.errors import MeasurementError
from geomonitor.features.hooks_run import hooks_run
from geomonitor.features.layers import Layer, plain_modules

_ENTRIES_AT_ONCE = 2**22
"""Entries of the outputs ``(rows, columns)`` that are held at the same time: 83 rows of a vocabulary of 50,000."""
_SCALES = (1.0, 1.0, 16.0, 16.0)
"""Sizes of the random features on which the affine map is compared with the head: none of a network is so small that a
bounded activation looks linear on all of them."""
_ROUNDING = 16
"""Steps of rounding by which the two may differ, of the sum of the products' sizes; more for wide heads."""
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Head(NamedTuple):
    """The rows of a linear head for the probe's classes; ``weight`` is None if there is no such head."""

    weight: Tensor | None = None
    """``(P, N)``"""
    bias: Tensor | None = None
    """``(P,)``"""
    reason: str = ""
    """why a layer that gives the logits is none, in words"""


def head_of(
    model: nn.Module, layer: Layer, labels: Sequence[int], *, width: int | None = None, gives_logits: bool = False
) -> Head:
    """The head behind a layer: the module that takes it is linear, with one output for each label.

    Of an ``nn.Linear`` and a quantised linear layer of torch the weights are read. Any other module is run, if it
    gives the logits: its weights are the gradients of its outputs at zero, and its bias is what it gives for zero; it
    is a linear head if this predicts what it gives for random features. Hooks of the user do not run. A convolution
    counts if it looks at one place at a time. Call this inside ``undisturbed``.

    Weights that are spread over processes as ``DTensor`` (FSDP2) are gathered, so all processes have to call this;
    weights that FSDP1 has flattened give no head.

    Args:
        model: whose layer it is.
        layer: that feeds the head.
        labels: columns of the logits, in the order of the classes.
        width: of the features; None: any.
        gives_logits: whether the module is known to give the logits of the model.

    >>> head = head_of(nn.Sequential(nn.Flatten(), nn.Bilinear(2, 2, 3)), Layer("1", "input"), [0, 2])
    >>> head.weight is None
    True
    >>> class Transposed(nn.Module):
    ...     def forward(self, x):
    ...         return x @ torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    >>> head_of(Transposed(), Layer("", "input"), [0, 2], width=2, gives_logits=True).weight
    tensor([[1., 4.],
            [3., 6.]])
    """
    module = plain_modules(model)[layer.path]
    if layer.side != "input" or not labels or min(labels) < 0:
        return Head()
    computed = gives_logits and _computes_its_weight(module)
    head = None if computed else _stored(module, labels)
    if head is None and gives_logits and width is not None:
        try:
            head = _found_by_running(module, labels, width)
        except Exception as error:  # noqa: BLE001 - a head that is no linear map can do anything
            known = isinstance(error, MeasurementError)
            head = Head(reason=str(error) if known else f"it cannot be run alone: {type(error).__name__}: {error}")
    if head is None or (head.weight is not None and width not in (None, head.weight.shape[1])):
        return Head()
    return head


def _computes_its_weight(module: nn.Module) -> bool:
    """Whether what an ``nn.Linear`` multiplies with may not be the weight that it holds."""
    own = type(module).forward is not nn.Linear.forward or "forward" in vars(module)
    return isinstance(module, nn.Linear) and (own or any(map(_is_of_torch, module._forward_pre_hooks.values())))


def _stored(module: nn.Module, labels: Sequence[int]) -> Head | None:
    """Read from a layer that keeps its weight as a matrix; None if it does not."""
    weight: Any = getattr(module, "weight", None)
    bias: Any = getattr(module, "bias", None)
    if isinstance(module, nn.Linear):
        if weight.shape != (module.out_features, module.in_features) or not weight.is_floating_point():
            return None
    elif callable(weight) and callable(bias):  # quantised layers of torch
        weight, bias = weight(), bias()
    else:
        return None
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.is_meta:
        return None
    if max(labels) >= len(weight):
        return Head()
    weight, bias = _whole(weight), None if bias is None else _whole(bias)
    rows = torch.tensor(labels, device=weight.device)
    return Head(weight[rows], None if bias is None else bias[rows])


def _whole(parameter: Tensor) -> Tensor:
    with torch.no_grad():
        found: Any = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter.detach()
        whole: Tensor = found.dequantize() if found.is_quantized else found
        return whole


def _found_by_running(module: nn.Module, labels: Sequence[int], width: int) -> Head:
    """Weights and bias of a module that is an affine map.

    Raises:
        MeasurementError: it is none, and why.
        Exception: what the module raises.
    """
    parameters = list(module.parameters())
    if any(hasattr(parameter, "full_tensor") or parameter.is_meta for parameter in parameters):
        raise MeasurementError("its weights are spread over processes or offloaded")
    places = max(map(_places, module.modules()))
    floating = [parameter for parameter in parameters if parameter.is_floating_point()]
    like = floating[0] if floating else torch.zeros(())

    def run(x: Tensor) -> Tensor:
        out = module(x.view(*x.shape, *[1] * places))
        out = out.flatten(1) if isinstance(out, Tensor) and out.ndim == 2 + places else None
        if out is None or len(out) != len(x) or out.shape[1] <= max(labels):
            raise MeasurementError("it does not give one row of logits of the classes for a row of features")
        return out

    with _without_hooks(module), hooks_run():
        at_zero = run(like.new_zeros(1, width))
        at_once = max(1, _ENTRIES_AT_ONCE // at_zero.shape[1])
        weight = torch.cat(
            [_gradients(run, labels[i : i + at_once], width, like) for i in range(0, len(labels), at_once)]
        )
        columns = torch.tensor(labels, device=at_zero.device)
        bias = at_zero[0, columns].detach()
        stream = torch.Generator().manual_seed(0)
        x = torch.randn(len(_SCALES), width, generator=stream) * torch.tensor(_SCALES)[:, None]
        x = x.to(like)
        found = run(x)[:, columns].detach()
    w, b, x64 = (value.detach().cpu().double() for value in (weight, bias, x))
    step = max(torch.finfo(dtype).eps for dtype in {found.dtype, *(each.dtype for each in floating)})
    rounding = step * max(_ROUNDING, math.sqrt(width)) * (x64.abs() @ w.abs().T + b.abs())
    if not bool(((found.cpu().double() - x64 @ w.T - b).abs() <= rounding).all()):
        raise MeasurementError("what it gives is no affine function of the features")
    has_bias = bool(at_zero.any()) or any(p.ndim == 1 and len(p) == at_zero.shape[1] for p in parameters)
    return Head(weight, bias if has_bias else None)


def _places(module: nn.Module) -> int:
    """Dimensions of space of a convolution that looks at one place at a time; 0 of a module without any.

    Raises:
        MeasurementError: it looks at several places.
    """
    kernel: Any = getattr(module, "kernel_size", None)
    sizes = {*kernel, *getattr(module, "stride", ())} if isinstance(kernel, tuple) else set()
    if sizes == {1} and all(side == 0 for side in getattr(module, "padding", ())):
        return len(kernel)
    if kernel is not None or hasattr(module, "output_size"):
        raise MeasurementError(f"a {type(module).__name__} in it looks at more than one place")
    return 0


def _gradients(run: Any, labels: Sequence[int], width: int, like: Tensor) -> Tensor:
    """Gradients ``(B, N)`` of the outputs for the labels with respect to the features, at zero."""
    with torch.enable_grad():
        x = torch.zeros(len(labels), width, dtype=like.dtype, device=like.device, requires_grad=True)
        columns = torch.tensor(labels, device=like.device)[:, None]
        (found,) = torch.autograd.grad(run(x).gather(1, columns).sum(), x)
    return found


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Hooks, which wait for points of the data, do not run in the block; those of torch that compute weights do."""
    with ExitStack() as stack:
        for own in map(vars, module.modules()):
            for name in _HOOKS:
                stack.callback(own.__setitem__, name, own[name])
                own[name] = OrderedDict((key, hook) for key, hook in own[name].items() if _is_of_torch(hook))
        yield


def _is_of_torch(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")
