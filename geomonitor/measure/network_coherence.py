"""Coherence of the gradients of single points with respect to all trained parameters of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from geomonitor import _options
from geomonitor._warnings import cause_of
from geomonitor.errors import InputError
from geomonitor.features.hooks_run import hooks_run
from geomonitor.features.isolation import undisturbed
from geomonitor.features.layers import plain_modules
from geomonitor.features.outputs import logits_in
from geomonitor.features.watched import Written
from geomonitor.markers.coherence import NETWORK_COHERENCE, coherence_of_products
from geomonitor.markers.estimate import Estimate
from geomonitor.measure.probe_pass import Forward, call, device_of, dtype_of, to_device, to_dtype
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.reservoir import priority
from geomonitor.probe.token_probe import TokenProbe

POINTS = 64
AT_ONCE = 8
"""Points whose gradients are held at the same time: each is as large as the parameters."""

Loss = Callable[[Any, Tensor], Tensor]
Parameters = dict[str, Tensor]


def network_coherence(
    model: nn.Module,
    probe: ProbeSet,
    *,
    points: int = POINTS,
    loss: Loss | None = None,
    forward: Forward | None = None,
    at_once: int = AT_ONCE,
) -> Estimate:
    r"""Coherence of the gradients of single points with respect to all parameters that are trained.

    Two gradients for each point: one for the sum of all, one for its product with that sum; so no more than
    ``at_once`` gradients are held. They are computed by ``vmap`` if the model allows it, else one by one. The model
    is in evaluation mode, with the running statistics of BatchNorm: else points would depend on each other.

    The theory is about the points on which the network is trained: give a probe set made of these. With several
    processes each computes all points; parameters that are sharded over processes are not supported.

    Args:
        model: left exactly as it was: no gradient stays, nothing is written.
        probe: the points; ``points`` of them are taken, the same ones at every call.
        points: how many, two at least.
        loss: ``loss(output, label)`` of one point, a scalar: ``output`` is what the model returns for a batch of it,
            ``label`` has shape ``(1,)``: 0 of a probe set without labels, the number of a class that was made. By
            default the cross-entropy of its logits; for a language model ``lambda output, label: output.loss``, if it
            returns that. A target that is no class comes with the inputs, and ``forward`` returns it beside the output.
        forward: as in ``GeometryMonitor``.
        at_once: points whose gradients are held together.

    Returns:
        Value and standard error as :func:`geomonitor.markers.coherence.coherence`.

    Raises:
        InputError: no parameter is trained, parameters spread over processes, no logits of the labels and no ``loss``.

    Source: Chatterjee and Zielinski 2022, arXiv:2203.10036.

    >>> import geomonitor as gm
    >>> data = torch.utils.data.TensorDataset(torch.randn(20, 3), torch.arange(20) % 2)
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = network_coherence(model, gm.ProbeSet.from_dataset(data, per_class=10))
    >>> bool(-1 / 19 <= found.value <= 1), model[0].weight.grad is None
    (True, True)
    """
    _options.instance("probe", probe, ProbeSet, "a geomonitor.ProbeSet")
    points = min(_options.whole("points", points, least=2), len(probe))
    at_once = min(_options.whole("at_once", at_once), points)
    run = call if forward is None else _options.function("forward", forward, "model, inputs")
    own = None if loss is None else _options.function("loss", loss, "output, label")
    return _measured(model, probe, points=points, loss=own, forward=run, at_once=at_once, written=Written())


def coherence_beside(
    model: nn.Module,
    probe: ProbeSet,
    *,
    forward: Forward,
    loss: Loss | None,
    warn: Callable[[str, str], None],
    written: Written | None = None,
) -> tuple[float, float]:
    """Coherence and its standard error beside the markers of a measurement; a failure is NaN and a warning.

    Args:
        model: left exactly as it was.
        probe: the points.
        forward: runs the model on a batch.
        loss: as in :func:`network_coherence`.
        warn: takes a warning and a key of its cause.
        written: what is known of writes of the model to its parameters.
    """
    try:
        points = min(POINTS, len(probe))
        found = _measured(model, probe, points=points, forward=forward, loss=loss, warn=warn, written=written)
    except Exception as error:  # noqa: BLE001 - the geometry was measured, and stays
        warn(f"{NETWORK_COHERENCE} cannot be measured, it is NaN. {type(error).__name__}: {error}", cause_of(error))
        return math.nan, math.nan
    return float(found.value), float(found.standard_error)


def checked_coherence_probe(probe: Any, loss: Any = None) -> ProbeSet | None:
    """The probe set of :func:`coherence_beside` of a monitor, or None.

    Raises:
        InputError: something else; points that have no label of their own, without a loss; a loss without points.
    """
    if loss is not None:
        _options.function("coherence_loss", loss, "output, label")
    if probe is None:
        if loss is not None:
            raise InputError("coherence_loss is the loss of the points of a coherence_probe: give this also")
        return None
    if not isinstance(probe, ProbeSet) or isinstance(probe, TokenProbe):
        raise InputError(
            "coherence_probe takes a ProbeSet of training points, such as ProbeSet.from_dataset(train_dataset); got "
            f"{type(probe).__name__}"
        )
    if loss is None and not probe.logit_columns:
        raise InputError(
            "coherence_probe needs labels that are columns of the logits, for the cross-entropy of each point; got a "
            "probe set without. Give such labels, or coherence_loss=, a function of (output, label)"
        )
    return probe


def _measured(
    model: nn.Module,
    probe: ProbeSet,
    *,
    points: int,
    forward: Forward,
    loss: Loss | None = None,
    at_once: int = AT_ONCE,
    warn: Callable[[str, str], None] | None = None,
    written: Written | None = None,
) -> Estimate:
    model = plain_modules(model)[""]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("no parameter of the model is trained: there is no gradient")
    if any(hasattr(p, "full_tensor") or "_flat_param" in name for name, p in model.named_parameters()):
        raise InputError("the parameters are spread over processes (FSDP); measure a model that is whole")
    chosen = torch.argsort(priority(torch.arange(len(probe)), probe.seed), stable=True)[:points].sort().values
    parts = torch.split(chosen, at_once)
    with undisturbed(model, warn, written), hooks_run(), torch.enable_grad():
        gradients = _Gradients(model, probe, forward, loss or partial(_cross_entropy, classes=probe.classes))
        total: Parameters = {}
        for found in gradients.of(parts):
            total = {name: part.sum(dim=0) + total.get(name, 0) for name, part in found.items()}
        dots, squares = [], []
        for found in gradients.of(parts):
            dots.append(_products(found, total))
            squares.append(_products(found, found))
    return coherence_of_products(torch.cat(dots), torch.cat(squares))


def _products(one: Parameters, other: Parameters) -> Tensor:
    """Products of gradients ``(B, ...)`` with others, or with one ``(...)``: ``(B,)`` float64."""
    products = [(part * other[name]).flatten(1).sum(dim=1, dtype=torch.float64).cpu() for name, part in one.items()]
    return torch.stack(products).sum(dim=0)


def _cross_entropy(output: Any, label: Tensor, classes: Sequence[int]) -> Tensor:
    logits = logits_in(output, classes)
    if logits is None:
        raise InputError(
            f"the model's output holds no logits (B, C) with a column for each of the labels {tuple(classes)}: give "
            "loss=, a function of (output, label)"
        )
    return nn.functional.cross_entropy(logits, label)


class _Gradients:
    """Gradients of single points with respect to the trained parameters.

    Args:
        model: in evaluation mode.
        probe: the points.
        forward: runs the model on a batch of one.
        loss: of its output and label.
    """

    def __init__(self, model: nn.Module, probe: ProbeSet, forward: Forward, loss: Loss) -> None:
        self._called, self._probe, self._loss = _Called(model, forward), probe, loss
        self._device, self._dtype = device_of(model), dtype_of(model)
        self._parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self._together = True

    def of(self, parts: Sequence[Tensor]) -> Iterator[Parameters]:
        """Gradients ``(B, ...)`` by parameter; the same ones at every call.

        Args:
            parts: ids ``(B,)`` of the points that are held together.
        """
        torch.manual_seed(0)  # for a model that draws in evaluation mode also
        for ids in parts:
            found = self._by_vmap(ids) if self._together else None
            self._together = found is not None
            yield found or self._one_by_one(ids)

    def _by_vmap(self, ids: Tensor) -> Parameters | None:
        by_point = vmap(grad(self._loss_at), in_dims=(None, 0, 0), randomness="different")
        try:
            found: Parameters = by_point(self._parameters, *self._batch(ids))
        except Exception:  # noqa: BLE001 - vmap cannot run every model; if it is not to blame, the other way fails also
            return None
        return found

    def _one_by_one(self, ids: Tensor) -> Parameters:
        rows: list[tuple[Tensor, ...]] = []
        for point in torch.split(ids, 1):
            leaves = {name: value.clone().requires_grad_() for name, value in self._parameters.items()}
            inputs, label = self._batch(point)
            loss = self._loss(self._run(leaves, inputs), label)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise InputError(f"loss must give a scalar that depends on the parameters; got {loss!r}")
            found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
            rows.append(
                tuple(torch.zeros_like(p) if g is None else g for p, g in zip(leaves.values(), found, strict=True))
            )
        return {name: torch.stack(parts) for name, parts in zip(self._parameters, zip(*rows, strict=True), strict=True)}

    def _loss_at(self, parameters: Parameters, inputs: Any, label: Tensor) -> Tensor:
        return self._loss(self._run(parameters, _batch_of_one(inputs)), label[None])

    def _run(self, parameters: Parameters, inputs: Any) -> Any:
        return functional_call(self._called, {f"model.{name}": p for name, p in parameters.items()}, (inputs,))

    def _batch(self, ids: Tensor) -> tuple[Any, Tensor]:
        batch = self._probe.batch_of(ids)
        return to_dtype(to_device(batch.inputs, self._device), self._dtype), batch.labels.to(self._device)


class _Called(nn.Module):
    """A model with the function that runs it."""

    def __init__(self, model: nn.Module, run: Forward) -> None:
        super().__init__()
        self.model, self._run = model, run

    def forward(self, inputs: Any) -> Any:
        return self._run(self.model, inputs)


def _batch_of_one(inputs: Any) -> Any:
    """The inputs of a point as a batch; recursive in tuples and mappings."""
    if isinstance(inputs, Mapping):
        return {name: _batch_of_one(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_batch_of_one(value) for value in inputs)
    return inputs[None]
