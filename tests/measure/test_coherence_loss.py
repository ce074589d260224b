"""Coherence of a whole network beside the markers, of a loss that is not the cross-entropy of logits."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomonitor as gm
from geomonitor.adapter import Adapter
from geomonitor.markers.coherence import coherence_of
from geomonitor.measure.network_coherence import network_coherence

POINTS, WIDTH = 24, 5


def points() -> list[dict[str, Tensor]]:
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(POINTS, WIDTH, generator=stream, dtype=torch.float64) + 0.5
    y = x @ torch.randn(WIDTH, 2, generator=stream, dtype=torch.float64)
    return [{"x": one, "aim": other} for one, other in zip(x, y, strict=True)]


def regression() -> gm.ProbeSet:
    return gm.ProbeSet.from_unlabelled(points(), samples=POINTS)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, 2)).double()


def with_target(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Any, Tensor]:
    return model(inputs["x"]), inputs["aim"]


def squared(output: tuple[Tensor, Tensor], label: Tensor) -> Tensor:
    assert label.shape == (1,)
    return (output[0] - output[1]).square().mean()


def absolute(output: tuple[Tensor, Tensor], label: Tensor) -> Tensor:
    return (output[0] - output[1]).abs().mean()


OPTIONS: dict[str, Any] = {
    "layers": {"z": "2:input"},
    "markers": ["mean_norm"],
    "panel": None,
    "forward": with_target,
    "on_error": "raise",
}


def watched(**options: Any) -> gm.GeometryMonitor:
    given = OPTIONS | {"coherence_probe": regression(), "coherence_loss": squared} | options
    return gm.GeometryMonitor(regression(), **given)


def of_network(monitor: gm.GeometryMonitor) -> tuple[float, float]:
    found = monitor.history.series("", "network_coherence")
    return float(found.values[-1]), float(found.standard_errors[-1])


def point_by_point(model: nn.Module, inputs: list[Any], loss_of: Any) -> float:
    """Mean product of the gradients of two points over the mean square of one, by a backward pass for each point."""
    model, rows = copy.deepcopy(model).eval(), []
    for each in inputs:
        model.zero_grad()
        loss_of(model, each).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    g = torch.stack(rows)
    products = g @ g.T
    return float(products[~torch.eye(len(g), dtype=torch.bool)].mean() / products.diagonal().mean())


def test_squared_errors_of_the_last_layer_are_the_closed_form():
    model = network()
    model[:2].requires_grad_(False)
    monitor = watched()
    monitor.measure(model, step=1)
    x, y = (torch.stack([each[name] for each in points()]) for name in ("x", "aim"))
    with torch.no_grad():
        expected = coherence_of(model[:2](x), model(x) - y)
    assert of_network(monitor) == pytest.approx([float(value) for value in expected], rel=1e-10)


def test_a_network_against_a_backward_pass_for_each_point():
    model, monitor = network(), watched()
    monitor.measure(model, step=1)
    expected = point_by_point(model, points(), lambda m, each: (m(each["x"][None]) - each["aim"]).square().mean())
    assert of_network(monitor)[0] == pytest.approx(expected, rel=1e-10)
    assert of_network(monitor) == tuple(
        map(float, network_coherence(model, regression(), loss=squared, forward=with_target))
    )
    other = watched(coherence_loss=absolute)
    other.measure(model, step=1)
    assert abs(of_network(other)[0] - expected) > 0.01


def test_points_whose_classes_were_made_of_targets():
    stream = torch.Generator().manual_seed(2)
    x = torch.randn(60, WIDTH, generator=stream, dtype=torch.float64)
    data = torch.utils.data.TensorDataset(x, x.sum(1))
    held = gm.ProbeSet.from_dataset(data, per_class=10, quantile_bins=3)
    with pytest.raises(gm.InputError, match=r"needs labels that are columns.*coherence_loss="):
        watched(coherence_probe=held, coherence_loss=None)
    seen: list[int] = []

    def loss(output: Tensor, label: Tensor) -> Tensor:
        return (output.mean() - label).square().mean()

    options = OPTIONS | {"forward": None, "coherence_probe": held, "coherence_loss": loss}
    monitor, model = gm.GeometryMonitor(held, **options), network()
    monitor.measure(model, step=1)
    batches = list(held.loader(1))
    seen += [int(batch.labels) for batch in batches]
    assert set(seen) == {0, 1, 2}
    expected = point_by_point(model, batches, lambda m, batch: (m(batch.inputs).mean() - batch.labels).square().mean())
    assert of_network(monitor)[0] == pytest.approx(expected, rel=1e-10)


def test_what_is_wrong_is_refused_before_training():
    tokens = gm.TokenProbe.from_unlabelled(
        [{"input_ids": torch.arange(6), "attention_mask": torch.ones(6)} for _ in range(30)], samples=20
    )
    for options, message in (
        ({"coherence_loss": None}, "needs labels"),
        ({"coherence_loss": "mse"}, "coherence_loss"),
        ({"coherence_probe": None}, "give this also"),
        ({"coherence_probe": tokens}, "takes a ProbeSet"),
    ):
        with pytest.raises(gm.InputError, match=message):
            watched(**options)


def test_the_protocol_knows_the_name_of_the_loss():
    first = watched()
    assert first.protocol["coherence loss"] == "squared"
    first.measure(network(), step=1)
    watched().load_state_dict(first.state_dict())
    with pytest.raises(gm.InputError, match="coherence loss: squared -> absolute"):
        watched(coherence_loss=absolute).load_state_dict(first.state_dict())
    labelled = gm.ProbeSet.from_dataset([(torch.randn(3), n % 2) for n in range(20)], per_class=5)
    plain = gm.GeometryMonitor(labelled, markers=["mean_norm"], panel=None, coherence_probe=labelled)
    assert "coherence loss" not in plain.protocol


def test_a_loss_that_fails_is_nan_and_a_warning():
    monitor = watched(coherence_loss=lambda output, label: output[0])
    with pytest.warns(gm.GeomonitorWarning, match=r"network_coherence cannot be measured.*must give a scalar"):
        monitor.measure(network(), step=1)
    assert math.isnan(of_network(monitor)[0])


def test_a_callback_passes_it_on(tmp_path):
    given = OPTIONS | {"coherence_probe": regression(), "coherence_loss": squared}
    callback, model = Adapter(regression(), directory=tmp_path, **given), network()
    callback.begin(model, step=0)
    logged = callback.measure(model, step=1, epoch=0)
    expected = network_coherence(model, regression(), loss=squared, forward=with_target)
    assert logged["geometry/network_coherence"] == float(expected.value)
    assert callback.monitor.protocol["coherence loss"] == "squared"


def test_a_language_model_by_the_loss_that_it_returns():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    items = [{"input_ids": torch.randint(13, (6,)), "attention_mask": torch.ones(6).long()} for _ in range(12)]
    held = gm.ProbeSet.from_unlabelled(items, samples=12)
    monitor = gm.GeometryMonitor(
        held,
        layers={"z": "lm_head:input"},
        markers=["mean_norm"],
        panel=None,
        coherence_probe=held,
        coherence_loss=lambda output, label: output.loss,
        forward=lambda m, inputs: m(**inputs, labels=inputs["input_ids"]),
        on_error="raise",
    )
    monitor.measure(model, step=1)

    def loss_of(m: nn.Module, each: dict[str, Tensor]) -> Tensor:
        ids = each["input_ids"][None]
        logits = m(input_ids=ids).logits
        return nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])  # as the model does

    assert of_network(monitor)[0] == pytest.approx(point_by_point(model, items, loss_of), rel=1e-6)  # single precision
