"""The features of a layer as a differentiable function of inputs, with no trace on the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from geomonitor import _options
from geomonitor.errors import InputError, MeasurementError
from geomonitor.features.capture import Pool, captured, resolve_layers
from geomonitor.features.isolation import undisturbed
from geomonitor.measure.probe_pass import Forward, call, device_of, dtype_of, to_dtype

ToFeatures = Callable[[Tensor], Tensor]
"""From inputs ``(B, ...)`` to features ``(B, N)``, differentiable."""
ToModel = Callable[[Tensor], Tensor]
"""From the prior's space to the model's inputs: range, normalisation, size, decoding; differentiable."""
BATCH = 256
"""Inputs that pass the model together where no gradient is needed."""


@contextmanager
def layer_features(
    model: nn.Module,
    layer: str = "penultimate",
    *,
    pool: Pool = "auto",
    forward: Forward = call,
    to_model: ToModel | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Iterator[ToFeatures]:
    """A function from inputs to the features of a layer, as long as the block lasts.

    The model is in evaluation mode inside, no parameter has a gradient, and all is as it was afterwards: see
    :func:`geomonitor.features.isolation.undisturbed`.

    Args:
        model: any module.
        layer: one layer, as in ``captured``.
        pool: as in ``captured``.
        forward: runs the model on inputs.
        to_model: from the prior's space to the model's inputs; by default they are the same.
        weights: parameters and buffers to run the model with instead of its own; these stay as they are.

    Yields:
        The function; half precision becomes float32. It raises a ``MeasurementError`` for a layer that does not run
        and for features of whole numbers. Features that are not finite are returned.

    Raises:
        InputError: several layers, or options that do not make sense.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with layer_features(model) as features, torch.enable_grad():
    ...     x = torch.ones(2, 4, requires_grad=True)
    ...     features(x).shape, torch.autograd.grad(features(x).sum(), x)[0].shape
    (torch.Size([2, 3]), torch.Size([2, 4]))
    """
    _options.instance("model", model, nn.Module, "a torch module")
    resolved = resolve_layers(model, _options.text("layer", layer))
    if len(resolved) != 1:
        raise InputError(f"a fiber is of one layer; {layer!r} means {', '.join(resolved)}")
    (alias,) = resolved
    device, dtype = device_of(model), dtype_of(model)
    runner = _Runner(model, forward)
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # each of tied weights once
    if weights is not None and (missing := sorted((own & model.state_dict().keys()) - weights.keys())):
        raise InputError(f"weights must hold all that the model's state_dict has; {missing[0]!r} is missing")
    swapped = {f"model.{name}": value.to(device) for name, value in (weights or {}).items() if name in own}

    def features(inputs: Tensor) -> Tensor:
        given = to_dtype(inputs.to(device), dtype)
        given = to_model(given) if to_model is not None else given
        with captured(model, resolved, pool=pool, detach=False) as found:
            if swapped:
                functional_call(runner, swapped, (given,))
            else:
                runner(given)
        return _floating(found[alias], alias)

    with undisturbed(model), _frozen(model):
        yield features


@contextmanager
def quiet_prior(prior: Any) -> Iterator[None]:
    """The prior's network, if it is a module, without gradients of its parameters, and as it was afterwards."""
    network = getattr(prior, "network", None)
    if not isinstance(network, nn.Module):
        yield
        return
    with undisturbed(network), _frozen(network):
        yield


def device_of_prior(prior: Any) -> torch.device | None:
    """Device of the prior's network, if it is a module with parameters."""
    network = getattr(prior, "network", None)
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), None)


def features_of(network: ToFeatures, inputs: Tensor) -> Tensor:
    """Features ``(Q, N)`` on the CPU, a part of the inputs at a time, without a gradient."""
    with torch.no_grad():
        return torch.cat([network(part).cpu() for part in torch.split(inputs, BATCH)])


def _floating(features: Tensor, alias: str) -> Tensor:
    """Features in float32, or in float64 if the model computes so.

    Raises:
        MeasurementError: whole numbers.
    """
    if not features.is_floating_point():
        raise MeasurementError(
            f"the features of {alias!r} are of type {features.dtype}, along which there is no gradient: take a layer "
            "before the quantisation"
        )
    return features.to(torch.promote_types(features.dtype, torch.float32))


class _Runner(nn.Module):
    """Runs a model through a function; as a module, so that its weights can be exchanged for one call."""

    def __init__(self, model: nn.Module, run: Forward) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, inputs: Tensor) -> Any:
        return self.run(self.model, inputs)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, before in parameters:
            parameter.requires_grad_(before)
