"""Coherence of gradients, measured: in a monitor for the last layer, and for a whole network by a function."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.history.runs import load_run
from geomonitor.markers.coherence import coherence
from geomonitor.measure import network_coherence as measured_by
from geomonitor.measure.network_coherence import network_coherence
from tests.processes import in_processes

CLASSES, EXACT = 4, 1e-12


def probe(points: int = 20) -> gm.ProbeSet:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES * points) % CLASSES
    images = torch.randn(len(labels), 1, 6, 6, generator=stream, dtype=torch.float64)
    return gm.ProbeSet.from_dataset(TensorDataset(images + labels[:, None, None, None], labels), per_class=points)


def network() -> nn.Sequential:
    """With what differs between training and evaluation, in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        body = (
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 10),
            nn.Dropout(),
            nn.ReLU(),
        )
        model = nn.Sequential(*body, nn.Linear(10, CLASSES)).double()
        model(torch.randn(50, 1, 6, 6, dtype=torch.float64))  # running statistics
    return model


def by_backward(model: nn.Module, held: gm.ProbeSet) -> tuple[float, float]:
    """The definition: one backward pass for each point through a copy, products of all pairs."""
    model = copy.deepcopy(model).eval()
    gradients = []
    for batch in held.loader(1):
        model.zero_grad()
        nn.functional.cross_entropy(model(batch.inputs), batch.labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    g = torch.stack(gradients)
    products = g @ g.T
    value = products[~torch.eye(len(g), dtype=torch.bool)].mean() / products.diagonal().mean()
    mean, second = g.mean(0), g.square().sum(1).mean()
    u = (2 * (g @ mean - mean @ mean) - value * (g.square().sum(1) - second)) / second
    return value.item(), (u.std() / len(g) ** 0.5).item()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_a_network_against_a_backward_pass_for_each_point(frozen, at_once):
    model, held = network(), probe()
    if frozen:
        model[0].requires_grad_(False)
    found = network_coherence(model, held, points=1000, at_once=at_once)
    assert [v.item() for v in found] == pytest.approx(by_backward(model, held), rel=1e-10, abs=EXACT)


def test_of_the_last_layer_alone_it_is_the_closed_form():
    model, held = network().eval(), probe()
    model[:-1].requires_grad_(False)
    inputs = torch.cat([batch.inputs for batch in held.loader()])
    labels = torch.cat([batch.labels for batch in held.loader()])
    with torch.no_grad():
        expected = coherence(model[:-1](inputs), model(inputs), labels)
    found = network_coherence(model, held, points=1000)
    assert [v.item() for v in found] == pytest.approx([v.item() for v in expected], rel=1e-10, abs=EXACT)


def no_vmap(*_, **__):
    def refuse(*_):
        raise RuntimeError("vmap cannot run this")

    return refuse


def test_one_by_one_gives_the_same(monkeypatch):
    model, held = network(), probe()
    expected = network_coherence(model, held)
    monkeypatch.setattr(measured_by, "vmap", no_vmap)
    assert [v.item() for v in network_coherence(model, held)] == pytest.approx([v.item() for v in expected], rel=1e-10)


class Branching(nn.Module):
    """Looks at its values, which vmap refuses, and has a weight that it does not use for every point."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Linear(36, CLASSES, dtype=torch.float64) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.one if x.mean() > 1.5 else self.other)(x.flatten(1))


def test_a_model_that_vmap_cannot_run():
    model, held = Branching(), probe()
    found = network_coherence(model, held, points=1000)
    gradients = {}
    for batch in held.loader(1):
        model.zero_grad()
        nn.functional.cross_entropy(model(batch.inputs), batch.labels).backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        gradients[int(batch.ids)] = torch.cat([part.flatten() for part in parts])
        model.zero_grad()
    g = torch.stack(list(gradients.values()))
    m_coherence = (g.sum(0).square().sum() / g.square().sum()).item()
    assert found.value.item() == pytest.approx((m_coherence - 1) / (len(g) - 1), rel=1e-10)


@pytest.mark.parametrize("way", ["vmap", "one by one"])
def test_nothing_is_left_in_the_model(way, monkeypatch):
    if way == "one by one":
        monkeypatch.setattr(measured_by, "vmap", no_vmap)
    model = network().train()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    model[7].weight.grad = torch.ones_like(model[7].weight)
    before = copy.deepcopy(model.state_dict())
    modes, parameters = [m.training for m in model.modules()], list(model.parameters())
    versions = [p._version for p in parameters]
    random = torch.get_rng_state()
    network_coherence(model, probe())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert [p._version for p in parameters] == versions
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 7]
    assert [p.grad is None for p in model.parameters()] == [*[True] * 6, False, True]
    assert torch.equal(model[7].weight.grad, torch.ones_like(model[7].weight))
    assert torch.equal(torch.get_rng_state(), random)


def test_the_same_points_at_every_call_and_fewer_of_them():
    model, held = network(), probe()
    assert network_coherence(model, held, points=10) == network_coherence(model, held, points=10)
    assert network_coherence(model, held, points=10) != network_coherence(model, held, points=20)


class OfTokens(nn.Module):
    """Takes a mapping, as language models do, and gives its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.embedding(input_ids))
        return {"loss": nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())}


def test_a_language_model_by_its_own_loss_and_tied_weights():
    stream = torch.Generator().manual_seed(2)
    items = [
        {"input_ids": torch.randint(12, (6,), generator=stream), "attention_mask": torch.ones(6), "labels": n % 2}
        for n in range(20)
    ]
    model, held = OfTokens().double(), gm.ProbeSet.from_dataset(items, per_class=10)
    found = network_coherence(model, held, loss=lambda output, label: output["loss"])
    g = []
    for batch in held.loader(1):
        model.zero_grad()
        model(**batch.inputs)["loss"].backward()
        g.append(model.embedding.weight.grad.flatten().clone())
    g = torch.stack(g)
    m_coherence = (g.sum(0).square().sum() / g.square().sum()).item()
    assert found.value.item() == pytest.approx((m_coherence - 1) / 19, rel=1e-10)
    with pytest.raises(gm.InputError, match="give loss="):
        network_coherence(model, held)


def test_a_wrapped_model_is_the_model():
    model, held = network(), probe()
    expected = network_coherence(model, held)
    assert network_coherence(nn.DataParallel(model), held) == expected
    assert network_coherence(torch.compile(model, backend="eager"), held) == expected


def test_what_has_no_gradient_is_refused():
    with pytest.raises(gm.InputError, match="no parameter of the model is trained"):
        network_coherence(network().requires_grad_(False), probe())
    with pytest.raises(gm.InputError, match="points"):
        network_coherence(network(), probe(), points=1)
    with pytest.raises(gm.InputError, match="probe"):
        network_coherence(network(), [1, 2])


@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_labels_lower_it_on_the_points_that_have_them(seed):
    """Real digits after two epochs, on training points."""
    pixels, digit = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digit)
    found = {}
    for wrong in (0, 1200):
        torch.manual_seed(seed)
        order = torch.randperm(len(labels))[:1200]
        x, y = images[order], labels[order].clone()
        y[:wrong] = torch.randint(10, (wrong,))
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for batch in [part for _ in range(2) for part in torch.randperm(1200).split(32)]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        held = gm.ProbeSet.from_dataset(TensorDataset(x, y), per_class=30)
        monitor = gm.GeometryMonitor(held, markers=["coherence"], panel=None)
        monitor.measure(model, step=1)
        found[wrong] = latest(monitor)
    (right, error), (low, error_low) = found[0], found[1200]
    assert right > 3 * error
    assert low < 2 * error_low
    assert right - low > 3 * math.hypot(error, error_low)


def latest(monitor: gm.GeometryMonitor, layer: str = "penultimate", marker: str = "coherence") -> tuple[float, float]:
    found = monitor.history.series(layer, marker)
    return float(found.values[-1]), float(found.standard_errors[-1])


@pytest.mark.parametrize("batch_size", [80, 7])
def test_a_monitor_measures_the_last_layer(batch_size):
    model, held = network().eval(), probe()
    monitor = gm.GeometryMonitor(
        held, markers=["coherence", "accuracy"], layers={"penultimate": "7:input", "body": "4"}, panel=None,
        batch_size=batch_size, on_error="raise",
    )  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    monitor.measure(model, step=1)
    inputs = torch.cat([batch.inputs for batch in held.loader()])
    labels = torch.cat([batch.labels for batch in held.loader()])
    with torch.no_grad():
        expected = coherence(model[:-1](inputs), model(inputs), labels)
    assert latest(monitor) == pytest.approx([v.item() for v in expected], rel=1e-10)
    assert all(math.isnan(value) for value in latest(monitor, "body"))  # its output is no input of the last layer
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_without_logits_it_is_undefined_with_a_warning():
    monitor = gm.GeometryMonitor(probe(), markers=["coherence"], layers="4", panel=None, on_error="raise")
    with pytest.warns(gm.GeomonitorWarning, match="holds no logits"):
        monitor.measure(nn.Sequential(*network()[:5], nn.Linear(10, 2).double()), step=1)
    assert math.isnan(latest(monitor, "4")[0])
    with pytest.raises(gm.InputError, match="coherence: need labels"):
        gm.GeometryMonitor(gm.ProbeSet.from_unlabelled(torch.randn(30, 4), samples=20), markers=["coherence"])


class Spoiling(nn.Module):
    """Makes the features of one point NaN."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == self.place, math.nan, x)


def test_a_point_that_is_not_finite_is_left_out():
    model, held = network().eval(), probe()
    batch = next(held.loader(1000))
    with torch.no_grad():
        x, logits = model[:-1](batch.inputs), model(batch.inputs)
    kept = torch.arange(len(x)) != 5
    expected = coherence(x[kept], logits[kept], batch.labels[kept])
    monitor = gm.GeometryMonitor(held, markers=["coherence"], panel=None, batch_size=1000, on_error="raise")
    with pytest.warns(gm.GeomonitorWarning, match="NaN or infinite values"):
        monitor.measure(nn.Sequential(*model[:-1], Spoiling(5), model[-1]), step=1)
    assert latest(monitor) == pytest.approx([v.item() for v in expected], rel=1e-10)


def _measured(rank: int) -> tuple[float, float]:
    monitor = gm.GeometryMonitor(probe(), markers=["coherence"], panel=None, on_error="raise", batch_size=9)
    monitor.measure(network(), step=1)
    return latest(monitor)


def test_two_processes_measure_what_one_does():
    expected = _measured(0)
    for found in in_processes(_measured):
        assert found == pytest.approx(expected, rel=1e-10)


def watched(**options) -> gm.GeometryMonitor:
    defaults = {"coherence_probe": probe(24), "markers": ["mean_norm"], "panel": None, "on_error": "raise"}
    return gm.GeometryMonitor(probe(), **defaults | options)


def of_network(monitor: gm.GeometryMonitor) -> tuple[float, float]:
    return latest(monitor, "", "network_coherence")


def test_a_monitor_measures_the_whole_network_on_its_coherence_probe():
    model, monitor = network(), watched()
    records = {r.marker: r for r in monitor.measure(model, step=1)}
    expected = network_coherence(model, probe(24))
    assert of_network(monitor) == tuple(float(v) for v in expected)
    assert records["network_coherence"].key == "geometry/network_coherence"
    assert monitor.history.layers == ("penultimate",)
    plain = watched(coherence_probe=None)
    plain.measure(model, step=1)
    assert "network_coherence" not in plain.history.markers("")
    assert latest(plain, "penultimate", "mean_norm") == pytest.approx(
        latest(monitor, "penultimate", "mean_norm"), nan_ok=True
    )


def test_gradients_that_are_being_accumulated_and_training_are_the_same_bits():
    ends = []
    for options in ({}, {"coherence_probe": None}):
        model, monitor = network().train(), watched(**options)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(5)
        for step in range(4):
            x = torch.randn(8, 1, 6, 6, dtype=torch.float64)
            nn.functional.cross_entropy(model(x), torch.randint(CLASSES, (8,))).backward()
            held, before = [p.grad for p in model.parameters()], [p.grad.clone() for p in model.parameters()]
            monitor.measure(model, step=step)  # between two micro-batches, and before a step
            assert all(p.grad is grad for p, grad in zip(model.parameters(), held, strict=True))
            assert all(map(torch.equal, before, held))
            if step % 2:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
        ends.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *ends))


def test_a_coherence_probe_that_cannot_be_measured_is_nan_and_a_warning():
    model, monitor = network().requires_grad_(False), watched()
    with pytest.warns(gm.GeomonitorWarning, match=r"network_coherence cannot be measured.*no parameter"):
        monitor.measure(model, step=1)
    monitor.measure(model, step=2)  # a second warning would be an error
    assert all(math.isnan(value) for value in of_network(monitor))
    assert math.isfinite(latest(monitor, "penultimate", "mean_norm")[0])


def test_a_measurement_that_fails_is_nan_for_the_network_also():
    monitor = watched(on_error="warn")
    monitor.measure(network(), step=1)
    with pytest.warns(gm.GeomonitorWarning, match="could not be measured"):
        monitor.measure(nn.Sequential(*network()[:-1], nn.Linear(3, CLASSES).double()), step=2)
    assert monitor.history.series("", "network_coherence").steps.tolist() == [1, 2]
    assert math.isnan(of_network(monitor)[0])


def test_what_is_no_coherence_probe_is_refused_before_training():
    unlabelled = gm.ProbeSet.from_unlabelled(torch.randn(30, 4), samples=20)
    for wrong, message in ((unlabelled, "needs labels"), ([1], r"takes a ProbeSet.*got list"), ("train", "got str")):
        with pytest.raises(gm.InputError, match=message):
            watched(coherence_probe=wrong)


def test_the_protocol_knows_the_points_of_the_coherence_probe():
    first = watched()
    first.measure(network(), step=1)
    watched().load_state_dict(first.state_dict())
    for other in (None, probe(21)):
        with pytest.raises(gm.InputError, match="coherence"):
            watched(coherence_probe=other).load_state_dict(first.state_dict())


def test_points_that_change_in_a_run_end_it():
    data = TensorDataset(torch.randn(80, 1, 6, 6, dtype=torch.float64), torch.arange(80) % CLASSES)
    monitor, model = watched(coherence_probe=gm.ProbeSet.from_dataset(data, per_class=20)), network()
    monitor.measure(model, step=1)
    data.tensors[0].mul_(2)
    with pytest.raises(gm.MeasurementError, match=r"other data|changed"):
        monitor.measure(model, step=2)


def test_a_callback_passes_it_on_and_logs_it(tmp_path):
    from geomonitor.adapter import Adapter

    callback = Adapter(probe(), coherence_probe=probe(24), markers=["mean_norm"], panel=None, directory=tmp_path)
    model = network()
    callback.begin(model, step=0)
    logged = callback.measure(model, step=1, epoch=0)
    assert logged["geometry/network_coherence"] == float(network_coherence(model, probe(24)).value)
    read = load_run(tmp_path).history.series("", "network_coherence")
    assert read.values.tolist() == [logged["geometry/network_coherence"]]


def _of_network(rank: int) -> tuple[float, float]:
    monitor = watched()
    monitor.measure(network(), step=1)
    return of_network(monitor)


def test_two_processes_measure_the_network_as_one_does():
    expected = _of_network(0)
    for found in in_processes(_of_network):
        assert found == pytest.approx(expected, rel=1e-10)
